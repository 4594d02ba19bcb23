"""Where channels are: scales go into the weights only where they meet them, and what cannot be done says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from spikeloom import energy
from spikeloom.cli import main
from spikeloom.conversion import QCFS, EarlyExit, NotConvertibleError, convert, load_converted, save_converted

pytestmark = pytest.mark.filterwarnings("ignore:the thresholds are from:UserWarning")  # few images do here


class Net(nn.Module):
    """A forward and its modules."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(i: int, o: int) -> nn.Module:
    return nn.Conv2d(i, o, 3, padding=1)


def gap(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def _twice(s: Any, x: Tensor) -> Tensor:
    y = s.c(x)
    return s.l(gap(F.relu(s.b(s.i(y))) + F.relu(y)))


def _flats(s: Any, x: Tensor) -> Tensor:
    return s.l(torch.cat([F.relu(s.c(x)).flatten(1), F.relu(s.d(x)).flatten(1)], 1))


NETS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "cat_of_flats": lambda: (Net(_flats, c=conv(3, 4), d=conv(3, 5), l=nn.Linear(9 * 64, 5)), (3, 8, 8)),
    "norm_of_flat": lambda: (
        Net(lambda s, x: s.l(s.b(F.relu(s.c(x)).flatten(1))), c=conv(3, 4), b=nn.BatchNorm1d(256), l=nn.Linear(256, 5)),
        (3, 8, 8),
    ),
    "norm_1d": lambda: (
        Net(
            lambda s, x: s.l(F.relu(s.b(s.c(x))).mean(-1)), c=nn.Conv1d(3, 6, 3), b=nn.BatchNorm1d(6), l=nn.Linear(6, 5)
        ),
        (3, 20),
    ),
    "norm_of_places": lambda: (
        Net(lambda s, x: s.l(F.relu(s.b(s.c(x))).mean(1)), c=nn.Linear(6, 8), b=nn.BatchNorm1d(7), l=nn.Linear(8, 5)),
        (7, 6),
    ),
    "linear_over_width": lambda: (
        Net(lambda s, x: s.l(F.relu(s.c(x))).mean((1, 2)), c=conv(3, 8), l=nn.Linear(8, 5)),
        (3, 8, 8),
    ),
    "linear_behind_a_mean_of_width": lambda: (
        Net(lambda s, x: s.l(F.relu(s.c(x)).mean(3)).mean(1), c=conv(3, 8), l=nn.Linear(8, 5)),
        (3, 8, 8),
    ),
    "mean_of_channels": lambda: (
        Net(lambda s, x: s.l(F.relu(s.c(x)).mean(-2)), c=nn.Conv1d(3, 8, 3, padding=1), l=nn.Linear(8, 5)),
        (3, 8),
    ),
    "pool_of_features": lambda: (
        Net(lambda s, x: s.l(s.p(F.relu(s.c(x)))), c=nn.Linear(8, 8), p=nn.AvgPool1d(3, 1, 1), l=nn.Linear(8, 5)),
        (8,),
    ),
    "layer_read_before_its_norm": lambda: (
        Net(_twice, c=conv(3, 4), i=nn.Dropout(), b=nn.BatchNorm2d(4), l=nn.Linear(4, 5)),
        (3, 8, 8),
    ),
    "keywords": lambda: (
        Net(
            lambda s, x: s.l(gap(s.p(input=s.r(input=s.b(input=s.c(input=x)))))),
            **{"c": conv(3, 4), "b": nn.BatchNorm2d(4), "r": nn.ReLU(), "p": nn.MaxPool2d(2), "l": nn.Linear(4, 5)},
        ),
        (3, 8, 8),
    ),
    "padded_by_one": lambda: (
        Net(lambda s, x: s.l(F.pad(F.relu(s.c(x)), (1, 1), value=1.0).flatten(1)), c=conv(3, 2), l=nn.Linear(160, 5)),
        (3, 8, 8),
    ),
}


@pytest.mark.parametrize("method", ["channel_max", "max"])
@pytest.mark.parametrize("name", NETS)
def test_the_limit_is_the_ann(name: str, method: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    ann, shape = NETS[name]()
    images = torch.randn(8, *shape)
    for module in ann.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    with torch.no_grad():
        ann.train()(images)
        expected = ann.eval()(images)
        net = convert(ann, [images], method=method, T=1024)
        found = net(images)
        assert (found.mean(0) - expected).abs().max() < 0.01 * expected.abs().max()
        save_converted(net, tmp_path)
        assert torch.equal(load_converted(tmp_path)(images), found)
        net.T = 2
        with energy.count(net, strict=True):
            net(images)


def test_a_layer_read_before_its_norm_without_calibration() -> None:
    torch.manual_seed(0)
    ann = Net(
        lambda s, x: (lambda y: s.l(gap(s.q(s.b(s.i(y))) + s.q(y))))(s.c(x)),
        **{"q": QCFS(4, 4.0), "c": conv(3, 4), "i": nn.Identity(), "b": nn.BatchNorm2d(4), "l": nn.Linear(4, 5)},
    )
    images = torch.randn(8, 3, 8, 8)
    ann.train()(images)
    with torch.no_grad():
        net = convert(ann.eval(), method="qcfs", T=4)
        torch.testing.assert_close(net(images).mean(0), ann(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("ann", "says"),
    [
        (
            Net(
                lambda s, x: s.l(gap(torch.div(F.relu(s.c(x)), 2.0, rounding_mode="floor"))),
                c=conv(3, 4),
                l=nn.Linear(4, 5),
            ),
            "divide without rounding",
        ),
        (
            Net(lambda s, x: s.l(gap(F.relu(s.c(x)) + F.relu(s.c.bias).mean())), c=conv(3, 4), l=nn.Linear(4, 5)),
            "activation of a parameter alone",
        ),
        (
            Net(
                lambda s, x: s.l(gap(F.relu(s.c(x)))),
                c=prune.random_unstructured(conv(3, 4), "weight", 0.5),
                l=nn.Linear(4, 5),
            ),
            "prune.remove",
        ),
        (
            Net(lambda s, x: s.l(gap(F.relu(s.c(x)))), c=parametrizations.weight_norm(conv(3, 4)), l=nn.Linear(4, 5)),
            "remove_parametrizations",
        ),
        (
            Net(lambda s, x: s.l(gap(torch.cat([F.relu(s.c(x)), s.c(x)]))), c=conv(3, 4), l=nn.Linear(4, 5)),
            r"returns \[4, 5\] for 2 images",
        ),
        (
            Net(lambda s, x: s.l(F.layer_norm(gap(F.relu(s.c(x))), (4,))), c=conv(3, 4), l=nn.Linear(4, 5)),
            "train it with BatchNorm",
        ),
    ],
    ids=["rounding", "parameter", "pruned", "weight_norm", "batch_axis", "layer_norm"],
)
def test_refused(ann: nn.Module, says: str) -> None:
    with pytest.raises(NotConvertibleError, match=says):
        convert(ann.eval(), [torch.randn(4, 3, 8, 8)], method="max")


def _plain(*axes: int) -> nn.Module:
    layer = nn.Conv1d(3, 4, 3) if len(axes) == 1 else nn.Conv2d(3, 4, 3)
    return nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)).eval()


def test_values_that_are_not_finite_and_no_steps() -> None:
    images = torch.randn(4, 3, 8, 8)
    ann = _plain(8, 8)
    ann(images)
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        convert(ann, [images, images / 0], method="max")
    net = convert(ann, [images], method="max", T=4)
    with pytest.raises(ValueError, match="expected a whole number >= 1"):
        net(images.expand(0, *images.shape))
    with pytest.raises(ValueError, match="NaN or infinity"):
        EarlyExit(Net(lambda s, x: x.flatten(2) * torch.nan).eval(), 1.0, 0.5, T=4).run(images)
    net.T = -1
    with pytest.raises(ValueError, match="got -1 time steps"):
        net(images)


def test_early_exit_of_what_cannot() -> None:
    images = torch.randn(4, 3, 8)
    ann = _plain(8)
    ann(images)
    net = convert(ann, [images], method="max", T=4)
    with pytest.raises(ValueError, match="give frames=False"):
        EarlyExit(net)
    logits, steps = EarlyExit(net, 1.0, 0.5, T=4, frames=False).run(images)
    assert logits.shape == (4, 5)
    assert steps.shape == (4,)
    with pytest.raises(ValueError, match="looks at rho steps"):
        EarlyExit(convert(ann, [images], method="cos", rule="max", T=4))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef network():\n    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))\n"
    )
    torch.save(torch.randn(4, 4), tmp_path / "good.pt")
    torch.save(torch.randn(4, 5), tmp_path / "wide.pt")
    torch.save({"0.weight": torch.zeros(3, 4)}, tmp_path / "part.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "junk.pt").write_text("hello")
    (tmp_path / "junk.safetensors").write_text("hello")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--images", "none.pt"], "there is no file"),
        (["--images", "junk.pt"], "cannot be read as a file of torch.save"),
        (["--images", "junk.safetensors"], "cannot be read as safetensors"),
        (["--images", "wide.pt"], "does not take images [4, 5]"),
        (["--images", "good.pt", "--weights", "part.pt"], "does not belong to this network"),
        (["--images", "good.pt", "--weights", "list.pt"], "holds no state dict"),
        (["--images", "good.pt", "--batch", "0"], "--batch is 0"),
        (["--images", "good.pt", "--out", "."], "holds other things too"),
    ],
    ids=["missing", "damaged", "safetensors", "shape", "weights", "list", "batch", "out"],
)
def test_the_command_explains(
    options: list[str], says: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(["convert", "net.py:network", *options]) == 1
    printed = capsys.readouterr()
    assert says in printed.err
    assert "layers;" not in printed.out  # before the work
