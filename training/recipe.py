"""A recipe: every number that decides how a network is trained, as frozen dataclasses that go to JSON and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from spikeloom.models import MaskedConfig
from spikeloom.models.config import from_json, to_json
from spikeloom.training.optim_settings import UNPREFIXED, check_field
from spikeloom.training.optim_settings import Optim as Optim
from spikeloom.training.sequence_settings import Manifolds

_JSON = tyro.constructors.PrimitiveConstructorSpec[dict[str, Any]](
    nargs=1,
    metavar="JSON",
    instance_from_str=lambda words: dict(json.loads(words[0])),
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda value: [json.dumps(value)],
)
_MASKS = ("time_mask", "channel_mask")


@dataclass(frozen=True)
class Data:
    """Which recordings, and how they become frames `[T, B, 2, H, W]`; which images, text, or sequences `[T, B, N]`.

    Images are normalised by the mean and deviation of their data set and shown at every step (direct encoding); crop,
    split, duration_us and encoding are of event data alone; context, tokenizer, windows and stride of texts, whose
    token ids `[context, B]` come one per time step; steps, speaker and manifolds of sequences, which have their own
    number of time steps.
    """

    name: str = "saccade_mnist"
    """Data set: saccade_mnist or moving_shapes (simulated, embedded), or one read from --root: events of nmnist,
    cifar10_dvs, dvs_gesture, paf, efaction and event_store (what `spikeloom data pack` wrote: an .events file with a
    recorded split, or a folder of train.events and test.events), images of mnist, fashion_mnist, cifar10, cifar100,
    imagenet and image_folder (folders of classes). Texts: king_james (embedded), text_file and indexed_text
    (<prefix>.bin and .idx). Sequences: random_manifolds (simulated), or from --root shd, ssc, speech_commands and
    spoken_digits."""
    root: Annotated[str | None, UNPREFIXED] = None
    """Folder of the recordings or images, for data sets that are read from files; of a text, the file itself, too."""
    T: Annotated[int, UNPREFIXED] = 8
    """Time steps: frames per recording, or how often an image is shown."""
    split: Literal["time", "number"] = "time"
    """Frames of equal time (duration_us / T), or of equally many events of the recording."""
    duration_us: int = 300_000
    """split=time: what the T frames share, from 0, in microseconds; later events are not used."""
    encoding: Literal["binary", "count", "sqrt"] = "binary"
    """Value of a pixel: any event in the bin (0 or 1), their number, or its square root."""
    crop: int | None = None
    """Events: use so many pixels of height and width, in the middle; None: all."""
    pool: int = 1
    """Events: sum the counts over squares of so many by so many pixels (binary: any event in the square)."""
    drop_last: bool = False
    """Leave the last batch of an epoch of training out where it is not full; steps per epoch follow."""
    allow_partial: bool = False
    """cifar10, cifar100: also read a copy in which files or records are missing."""
    validation: int = 0
    """Training recordings held out, equally many of each class, for an evaluation after every epoch. Texts: so many
    times context tokens from the beginning of the last tenth of the text, which is never trained on. ssc and
    speech_commands: so many of their own validation part, spread evenly, and none of the training part."""
    image_size: int = 224
    """imagenet, image_folder: height and width that the model sees, in pixels."""
    crop_area: float = 0.08
    """imagenet, image_folder: training sees a random part of each image, of this share of its area at least (width /
    height 3/4 to 4/3), resized; 1: the middle, as in evaluation."""
    workers: int = 16
    """imagenet, image_folder: processes that decode images, at most one per core; 0: the main one does. No number
    depends on them."""
    unreadable: Literal["stop", "skip"] = "stop"
    """What to do with an image or an event recording that cannot be read: end the training, which goes on with --resume
    when the file was replaced, or do without it, with a warning and a count. imagenet, image_folder, event_store: the
    next readable one of the batch is shown in its place; nmnist, cifar10_dvs, dvs_gesture, paf and efaction are read
    before the training, without it. What is tested on is never left out."""
    skip_per_class: int = 0
    """saccade_mnist: leave the first so many images of each digit out of the training part."""
    swap_polarity: bool = False
    """saccade_mnist: polarities as the N-MNIST files have them."""
    limit: int | None = None
    """Use only so many recordings of each part, spread evenly over the classes (for a try). Texts: test on so
    many times context tokens only, from the beginning of the last tenth."""
    context: int = 256
    """Texts: tokens that the network is trained on at a time."""
    tokenizer: str = "bytes"
    """Texts: bytes, characters (those of the text), the file of a byte-level BPE, or a checkpoint folder."""
    windows: int = 10_000
    """Texts: random windows of context tokens that make an epoch."""
    stride: int | None = None
    """Texts: tokens between the windows of an evaluation, at most context; None: half the context."""
    steps: int | None = None
    """Sequences: so many time steps, cut or filled up with zeros; None: each batch has those of its longest."""
    speaker: str | None = None
    """spoken_digits: test on all recordings of this speaker and train on the others; None: the publisher's split."""
    manifolds: Manifolds = field(default_factory=Manifolds)
    """random_manifolds: what is simulated."""

    def __post_init__(self) -> None:
        check_field(self, "T", self.T >= 1, ">= 1")
        check_field(self, "duration_us", self.duration_us >= 1, ">= 1")
        check_field(self, "crop", self.crop is None or self.crop >= 1, ">= 1 or None")
        check_field(self, "pool", self.pool >= 1, ">= 1")
        check_field(self, "validation", self.validation >= 0, ">= 0")
        check_field(self, "image_size", self.image_size >= 1, ">= 1")
        check_field(self, "crop_area", 0 < self.crop_area <= 1, "above 0, up to 1")
        check_field(self, "workers", self.workers >= 0, ">= 0")
        check_field(self, "skip_per_class", 0 <= self.skip_per_class < 400, "0 to 399")
        check_field(self, "limit", self.limit is None or self.limit >= 1, ">= 1 or None")
        check_field(self, "context", self.context >= 1, ">= 1")
        check_field(self, "windows", self.windows >= 1, ">= 1")
        check_field(self, "stride", self.stride is None or 1 <= self.stride <= self.context, "1 to context, or None")
        check_field(self, "steps", self.steps is None or self.steps >= 1, ">= 1 or None")


@dataclass(frozen=True)
class Augment:
    """Random changes of each training recording or image, drawn anew in every epoch; 0 or None switches one off.

    Those for events come first, then those for frames or images, then mixing, normalisation and erasing. Sequences have
    their own: time_stretch, channel_stretch and channel_shift, then masks and sequence_mix.
    """

    shift_px: int = 0
    """Shift by up to so many pixels per axis; what comes in is 0, before normalisation."""
    rotate_degrees: float = 0.0
    """Events: turn by up to so many degrees."""
    drop: float = 0.0
    """Events: drop up to this fraction of them."""
    jitter_us: float = 0.0
    """Events: standard deviation of the noise on their times, in microseconds."""
    flip: float = 0.0
    """Probability of a mirrored image, or recording, left to right."""
    frame_op: bool = False
    """Frames of events: one of nothing, shear, translation, rotation and cutout, the same for all frames of one."""
    rand_augment: str | None = None
    """Images: RandAugment as timm spells it, such as "rand-m9-n1-mstd0.4-inc1"."""
    rand_operations: Literal["all", "five"] = "all"
    """RandAugment draws from timm's fifteen operations; or from the five that Spikformer's CIFAR scripts keep:
    equalise, rotate, shear x, translate x, translate y."""
    erase: float = 0.0
    """Images: probability of an erased rectangle."""
    erase_mode: Literal["const", "pixel"] = "const"
    """Images: what an erased rectangle holds: the mean of the data set, or noise."""
    mixup: float = 0.0
    """alpha of mixup: batches x and y become lam x + (1 - lam) x', y likewise, lam from Beta(alpha, alpha)."""
    cutmix: float = 0.0
    """alpha of cutmix: a rectangle comes from another sample; with mixup as well, each takes half of the batches."""
    mix_prob: float = 1.0
    """Probability that a batch is mixed."""
    mix_epochs: int | None = None
    """Mix in the first so many epochs; None: in all."""
    legacy_cutmix: bool = False
    """Frames of events: cutmix as the authors of Max-Former ran it, which cuts channels and rows by a box that was
    drawn for rows and columns: mostly nothing is pasted, and the labels are mixed all the same."""
    time_stretch: float = 0.0
    """Sequences: make each longer or shorter by a factor of up to e to this."""
    channel_stretch: float = 0.0
    """Sequences: stretch the axis of channels about its middle by a factor of up to e to this."""
    channel_shift: float = 0.0
    """Sequences: move by up to so many channels; what comes in is 0."""
    time_mask: int = 0
    """Sequences: with probability 0.65, a span of fewer than so many steps becomes 0."""
    channel_mask: int = 0
    """Sequences: with probability 0.65, fewer than so many neighbouring channels become 0."""
    sequence_mix: bool = False
    """Sequences: both masks, and with probability 0.5 a span of steps and its share of the label come from the next
    sample of the batch, as in the code of the delay networks."""

    def __post_init__(self) -> None:
        for name in ("shift_px", "rotate_degrees", "jitter_us", "mixup", "cutmix", "channel_shift", *_MASKS):
            check_field(self, name, getattr(self, name) >= 0, ">= 0")
        for name in ("drop", "flip", "erase", "mix_prob", "time_stretch", "channel_stretch"):
            check_field(self, name, 0 <= getattr(self, name) <= 1, "0 to 1")
        masked = not self.sequence_mix or (self.time_mask > 0 and self.channel_mask > 0)
        check_field(self, "sequence_mix", masked, "False, or a time_mask and a channel_mask above 0")
        check_field(self, "mix_epochs", self.mix_epochs is None or self.mix_epochs >= 0, ">= 0 or None")
        check_field(self, "legacy_cutmix", self.cutmix > 0 or not self.legacy_cutmix, "False, or a cutmix above 0")


@dataclass(frozen=True)
class Loss:
    """The loss on logits `[T, B, classes]`; see losses.py."""

    name: Literal["rate", "tet", "sum", "mean", "max", "spike_count", "nll"] = "rate"
    """rate: cross entropy of the mean over time; tet: mean of the cross entropies of every step. The others are
    read-outs of networks with delays, by which they are trained and decide (docs/delays.md)."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    tet_lambda: float = 0.05
    """tet: share of the regulariser that pulls all logits to tet_mean."""
    tet_mean: float = 1.0
    """tet: where the regulariser pulls (the firing threshold in the paper)."""
    logit_penalty: float = 0.0
    """task=language: weight of the gradient that keeps the largest logits small; it is in no reported loss."""

    def __post_init__(self) -> None:
        check_field(self, "logit_penalty", self.logit_penalty >= 0, ">= 0")
        check_field(self, "label_smoothing", 0 <= self.label_smoothing < 1, "0 to below 1")
        check_field(self, "tet_lambda", 0 <= self.tet_lambda < 1, "0 to below 1")


@dataclass(frozen=True)
class Recipe:
    """A whole training run."""

    model: str = "conv_snn_small"
    """Name in the registry of models."""
    model_args: Annotated[dict[str, Any], _JSON] = field(default_factory=dict)
    """Fields of the model's configuration to replace."""
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)
    loss: Loss = field(default_factory=Loss)
    task: Literal["classify", "reconstruct", "language"] = "classify"
    """classify: by labels, with `loss`. reconstruct: pre-train a SpikformerV2 without labels, by hidden patches.
    language: predict the next token of a text."""
    mask: MaskedConfig = field(default_factory=MaskedConfig)
    """task=reconstruct: how much is hidden, and the decoder."""
    epochs: int = 15
    """Passes over the training recordings; of a text, data.windows random windows each."""
    early_epochs: int = 0
    """Images: in the first so many epochs the network runs for early_steps time steps only, so these take less time."""
    early_steps: int = 1
    """Time steps of the first early_epochs epochs. No weight depends on their number."""
    batch_size: int = 64
    """Recordings (or windows of a text) per step, those of all processes together."""
    accumulate: int = 1
    """Backward passes per step, each over an equal part of the batch, for batches that memory has no room for. Numbers
    change by rounding, and by the statistics of normalisations, which are those of each part."""
    shared_statistics: bool = False
    """On several processes: normalise by the statistics of all parts of a batch that are computed at a time, as one
    process would; False: each process by its own."""
    shard: bool = False
    """task=language, under torchrun: divide weights, gradients and the optimiser's averages among the processes
    (FSDP2), for models that one GPU has no room for."""
    bf16: bool = True
    """Autocast to bfloat16 on a GPU (a CPU computes in float32)."""
    cuda_graph: Literal["auto", "on", "off"] = "auto"
    """On a GPU: capture whole steps in CUDA graphs, so that small models do not wait for the host. auto: where that is
    possible; on: refuse what cannot be captured. The numbers do not depend on it but for rounding."""
    recompute: bool = False
    """Keep only what enters each block for backward, and run the blocks again there: slower, in less memory."""
    ema: float | None = None
    """Decay of an average of the weights, which is then what is evaluated and saved; None: no average."""
    seed: int = 0
    """Of the initial weights, the order of the recordings, augmentation and dropout."""
    init: str | None = None
    """Checkpoint to start from."""
    select: Literal["last", "validation"] = "last"
    """Weights to evaluate and save in the end: the last ones, or those of the epoch with the best accuracy on what
    data.validation holds out."""
    watch_test: bool = False
    """Measure the test part after every epoch too, and report its best accuracy beside the result, as some papers do;
    nothing is chosen by it."""
    pretrain: str | None = None
    """Recipe to train first, with this one's model, frames, data.limit and seed; this one starts from its weights."""

    def __post_init__(self) -> None:
        check_field(self, "epochs", self.epochs >= 1, ">= 1")
        check_field(self, "batch_size", self.batch_size >= 1, ">= 1")
        check_field(self, "accumulate", self.accumulate >= 1, ">= 1")
        check_field(self, "early_epochs", 0 <= self.early_epochs <= self.epochs, f"0 to epochs={self.epochs}")
        check_field(self, "early_steps", self.early_steps >= 1, ">= 1")
        check_field(self, "ema", self.ema is None or 0 < self.ema < 1, "between 0 and 1, or None")
        check_field(self, "seed", self.seed >= 0, ">= 0")
        if self.task == "reconstruct" and self.data.T != 1:
            raise ValueError(
                f"The recipe's task is 'reconstruct' and data.T is {self.data.T}; expected T=1: each recording as one "
                "image, the events of all its frames together."
            )
        self._check_task()
        if self.select == "validation" and (self.data.validation == 0 or self.task != "classify"):
            raise ValueError(
                f"Recipe.select is 'validation' with data.validation={self.data.validation} and task={self.task!r}; "
                "expected recordings to select by, --data.validation N, and --task classify. Or pass --select last."
            )
        busy = self.optim.warmup_epochs + self.optim.cooldown_epochs
        # a single epoch tries out whether all fits together, and no schedule fits it
        if self.optim.cooldown_epochs > 0 and 1 < self.epochs <= busy:
            raise ValueError(
                f"Recipe.epochs is {self.epochs}, of which warm-up takes {self.optim.warmup_epochs:g} and cooldown "
                f"{self.optim.cooldown_epochs:g}; expected more than both. Raise --epochs, or lower "
                "--optim.warmup-epochs and --optim.cooldown-epochs."
            )
        if self.init is not None and self.pretrain is not None:
            raise ValueError(
                f"The recipe names both init={self.init!r} and pretrain={self.pretrain!r}; expected one: "
                "init starts from a checkpoint, pretrain trains one first. Set the other to None."
            )

        if self.shard and (self.task != "language" or self.ema is not None):
            raise ValueError(
                f"Recipe.shard is for --task language without an average of the weights, and the task is "
                f"{self.task!r} with ema={self.ema}. Leave --shard out."
            )

    def _check_task(self) -> None:
        """Refuse settings of the other tasks, which would change nothing."""
        idle = ["mask"] if self.task != "reconstruct" and self.mask != MaskedConfig() else []
        if self.task == "classify":
            idle += ["loss.logit_penalty"] if self.loss.logit_penalty else []
        elif self.task == "reconstruct":
            idle += [f"augment.{name}" for name in ("mixup", "cutmix") if getattr(self.augment, name)]
            idle += ["loss"] if self.loss != Loss() else []
            idle += ["watch_test"] if self.watch_test else []
        else:
            idle += ["augment"] if self.augment != Augment() else []
            idle += ["loss"] if replace(self.loss, logit_penalty=0.0) != Loss() else []
            idle += [name for name in ("pretrain", "watch_test") if getattr(self, name)]
        if idle:
            raise ValueError(
                f"The recipe's task is {self.task!r}, and {', '.join(idle)} changes nothing in it; expected the "
                "defaults. mask is for --task reconstruct; loss, mixup and cutmix, which need labels, for classify; "
                "loss.logit_penalty for language, which has --init in the place of pretrain."
            )
        if self.task == "language" and self.data.windows < self.batch_size:
            raise ValueError(
                f"Data.windows is {self.data.windows}, and batch_size {self.batch_size}: an epoch has no whole batch. "
                "Raise --data.windows, or lower --batch-size."
            )

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return to_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """What `to_json` gave, checked; absent fields keep their defaults."""
        return from_json(cls, data)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a JSON file.

    Raises:
        ValueError: the file is no JSON, or holds an unknown field or a wrong value.
    """
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file ({error}); expected a recipe like a run's recipe.json.") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}; expected the fields of a recipe.")
    return Recipe.from_json(data)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], place: str = "") -> list[str]:
    """Where two recipes (as JSON) differ: "optim.lr 0.002 -> 0.001"."""
    found = []
    for name in {**old, **new}:
        before, after, here = old.get(name), new.get(name), f"{place}{name}"
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{here}.")
        elif before != after:
            found.append(f"{here} {before!r} -> {after!r}")
    return found
