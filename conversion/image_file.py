"""Images, and labels, of a local file; nothing but tensors is unpickled."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def read_tensors(path: Path) -> Any:
    """What a .safetensors or torch file holds.

    Raises:
        ValueError: the file is missing, damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many types: zip, pickle, safetensors
        if isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
            raise ValueError(
                f"{path} holds more than tensors, such as a whole network, and unpickling that would run code of the "
                "file. Where you trust it, load it in Python and save torch.save(net.state_dict(), PATH)."
            ) from error
        raise ValueError(
            f"{path} cannot be read as {'safetensors' if path.suffix == '.safetensors' else 'a file of torch.save'} "
            f"with tensors alone ({type(error).__name__}: {error})."
        ) from error


def read_images(path: Path) -> Tensor:
    """Images `[N, ...]`: the file's tensor, or of several the one named images.

    Raises:
        ValueError: the file holds no such tensor.
    """
    return read_labelled(path)[0]


def read_labelled(path: Path) -> tuple[Tensor, Any]:
    """Images `[N, ...]`, and what the file holds under "labels", None if nothing.

    Raises:
        ValueError: the file holds no such images.
    """
    held, labels = read_tensors(path), None
    if isinstance(held, dict):
        labels = held.get("labels")
        held = held.get("images", next(iter(held.values())) if len(held) == 1 else None)
    if not isinstance(held, Tensor) or held.ndim < 2:
        raise ValueError(
            f"{path} holds no tensor [N, ...] of images; expected one, or several with one named 'images'."
        )
    return held, labels


def class_numbers(labels: Any, count: int, path: Path) -> Tensor:
    """Labels as whole numbers `[count]`.

    Raises:
        ValueError: they are none, or not one for each image.
    """
    if not isinstance(labels, Tensor) or labels.shape != (count,) or labels.is_complex():
        got = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels of {path} are {got} for {count} images; expected class numbers [{count}].")
    numbers = labels.long()
    if bool((numbers != labels).any()) or (count and int(numbers.min()) < 0):
        raise ValueError(f"labels of {path} are no class numbers; expected whole numbers from 0 on, [{count}].")
    return numbers
