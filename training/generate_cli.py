"""`spikeloom generate`: continue a text by a trained language model, token by token, as it is drawn.

The past is a state of fixed size (`Stream`), so neither memory nor the time of a token grows with the text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import nn

from spikeloom.datasets.token_ids import FILE, Tokenizer
from spikeloom.datasets.tokenizer_folder import load_tokenizer
from spikeloom.models.sampling import next_token_probabilities
from spikeloom.neurons import Stream
from spikeloom.training.checkpoint import load_model, require_checkpoint
from spikeloom.training.run import pick_device

_PIECE = 1024  # tokens of a prompt that enter at once
_LONGEST = 4  # tokens that a character may be spread over: the bytes of UTF-8
_BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class GenerateOptions:
    """Continue a text by a language model that `spikeloom train` has trained. Ctrl-C ends it where it is."""

    checkpoint: tyro.conf.Positional[str]
    """A run folder, a checkpoint folder, or its model.safetensors."""
    prompt: Annotated[str, tyro.conf.arg(aliases=["-p"])]
    r"""The text to continue. A line feed ($'\n' in most shells) begins anew."""
    tokens: int = 200
    """Tokens to add; characters, where these are the tokens."""
    temperature: float = 1.0
    """Above 1: more surprising; below: more likely tokens."""
    top_p: float = 0.9
    """Draw from the most probable tokens that have this share together; 0: always the most probable one, 1: all."""
    seed: int = 0
    """Of the draws."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1."""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError(
                "The prompt is empty, and a text needs a first token. A line feed does, in most shells --prompt $'\\n'."
            )
        if self.tokens < 1:
            raise ValueError(f"--tokens is {self.tokens}; expected 1 or more.")
        if not self.temperature > 0 or not self.top_p >= 0:
            raise ValueError(
                f"--temperature is {self.temperature} and --top-p {self.top_p}; expected a temperature above 0 and a "
                "share from 0 to 1."
            )


def generate(argv: list[str]) -> int:
    """`spikeloom generate CHECKPOINT --prompt TEXT ...`: returns the exit code."""
    options = tyro.cli(GenerateOptions, args=argv, prog="spikeloom generate", config=(tyro.conf.FlagCreatePairsOff,))
    checkpoint = require_checkpoint(Path(options.checkpoint))
    model, tokenizer = load_language_model(checkpoint)
    ids = torch.from_numpy(tokenizer.encode(options.prompt).astype("int64"))
    device = pick_device(options.device)
    drawn = draw(
        model.to(device),
        ids.to(device),
        tokenizer.vocab_size,
        torch.Generator().manual_seed(options.seed),
        options.top_p,
        options.temperature,
    )
    _write(options.prompt)
    code = 0
    try:
        for text in decoded(drawn, tokenizer, options.tokens):
            _write(text)
    except KeyboardInterrupt:
        code = 130
    _write("\n")
    return code


def load_language_model(checkpoint: Path) -> tuple[nn.Module, Tokenizer]:
    """The network of a checkpoint folder, in evaluation mode, and its tokenizer.

    Raises:
        ValueError: it is no language model, or its tokenizer has ids that the network lacks.
    """
    model, description = load_model(checkpoint)
    if description.recipe.task != "language":
        raise ValueError(
            f"{checkpoint} is no language model but a {description.model} of the task {description.recipe.task!r}. "
            "`spikeloom train spikegpt_char` trains one."
        )
    if not (checkpoint / FILE).is_file():
        raise FileNotFoundError(
            f"{checkpoint} lacks {FILE}, which `spikeloom train` writes there. Copy the whole folder."
        )
    tokenizer = load_tokenizer(checkpoint)
    known = int(description.model_config["vocab_size"])
    if tokenizer.vocab_size > known:
        raise ValueError(
            f"{checkpoint / FILE} has {tokenizer.vocab_size} ids, and the network knows {known}: it is that of "
            "another one. Copy the whole checkpoint folder again."
        )
    return model, tokenizer


def draw(
    model: nn.Module,
    prompt: torch.Tensor,
    vocab_size: int,
    generator: torch.Generator,
    top_p: float,
    temperature: float,
) -> Iterator[int]:
    """The ids that follow those of a prompt `[N]`, without end; those from vocab_size on are never drawn.

    generator: of the CPU, so that the draws are the same on every device where the probabilities are.
    """
    stream, piece = Stream(model), prompt.unsqueeze(1)  # [N, 1]
    while True:
        with torch.inference_mode():
            for part in piece.split(_PIECE):
                logits = stream(part, last=True)
            found = next_token_probabilities(logits[0, 0, :vocab_size].float().cpu(), top_p, temperature)
            token = int(torch.multinomial(found, 1, generator=generator))
        yield token
        piece = piece.new_tensor([[token]])


def decoded(drawn: Iterator[int], tokenizer: Tokenizer, tokens: int) -> Iterator[str]:
    """The text of so many tokens in whole characters, each as soon as it is whole."""
    pending: list[int] = []
    for _ in range(tokens):
        pending.append(next(drawn))
        text = tokenizer.decode(pending)
        if not text.endswith(_BROKEN) or len(pending) >= _LONGEST:
            pending.clear()
            yield text
    if pending:
        yield tokenizer.decode(pending)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
