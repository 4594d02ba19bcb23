"""Energy models as data: what comes with the package, what a user may add, and what is refused."""

from pathlib import Path

import pytest

from spikeloom.energy.memory import Memory
from spikeloom.energy.model_file import load_models
from spikeloom.energy.models import EnergyModel, get_model, list_models, register_model, with_memory

NAMES = [
    *("horowitz45_fp32", "horowitz45_int32", "horowitz45_fp16", "horowitz45_int8", "paper", "memory45", "lemaire2022"),
    *("loihi2018", "truenorth2014", "spinnaker", "spinnaker2", "odin", "reckon", "ubrain", "tianjic", "neuronflow"),
    *("seneca", "darwin3", "cpu_i7", "gpu_titan", "arm_a"),
]

CHIP = """
[{name}]
technology = "22 nm"
formula = "3 SOP"
source = "a test"
evidence = "{evidence}"
scope = "{scope}"
constants = {{ {constants} }}
"""


def chip(
    name: str, constants: str = "sop = 3.0", evidence: str = "measured", scope: str = "per_term", more: str = ""
) -> str:
    return CHIP.format(name=name, constants=constants, evidence=evidence, scope=scope) + more


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models registered in a test are gone after it."""
    from spikeloom.energy import models

    list_models()
    monkeypatch.setattr(models, "_MODELS", dict(models._MODELS))


def test_every_model_says_where_it_comes_from() -> None:
    assert list_models() == sorted(NAMES)
    for name in NAMES:
        model = get_model(name)
        assert model.name == name
        assert model.source
        assert model.technology
        assert model.constants


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("horowitz45_fp32", {"ac": 0.9, "mac": 4.6, "mul": 3.7}),
        ("horowitz45_int32", {"ac": 0.1, "mac": 3.2, "mul": 3.1}),
        ("horowitz45_fp16", {"ac": 0.4, "mac": 1.5, "mul": 1.1}),
        ("horowitz45_int8", {"ac": 0.03, "mac": 0.23, "mul": 0.2}),
    ],
)
def test_a_mac_is_an_addition_and_a_multiplication(name: str, constants: dict[str, float]) -> None:
    assert get_model(name).constants == constants
    assert constants["mac"] == pytest.approx(constants["ac"] + constants["mul"])


def test_evidence_and_scope_of_chips() -> None:
    assert get_model("loihi2018").evidence == "simulated"
    assert get_model("truenorth2014").scope == "all_in"
    assert get_model("spinnaker").disputed
    assert get_model("spinnaker2").disputed
    assert not get_model("loihi2018").disputed
    assert list_models("spinn*") == ["spinnaker", "spinnaker2"]


def test_unknown_names_and_options_are_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no energy model 'loihi' \(nearest: loihi2018"):
        get_model("loihi")
    with pytest.raises(ValueError, match=r"no option 'fan'.*fanout"):
        get_model("lemaire2022", fan="exact")
    with pytest.raises(ValueError, match="expected one of exact, paper"):
        get_model("lemaire2022", fanout="both")
    with pytest.raises(ValueError, match="hops_ew is -1"):
        get_model("loihi2018", hops_ew=-1)
    with pytest.raises(ValueError, match="has no base"):
        get_model("paper", base="horowitz45_int8")


def test_options_change_a_copy() -> None:
    changed = get_model("lemaire2022", fanout="paper", access_bits=64)
    assert changed.used()["fanout"] == "paper"
    assert changed.used()["memory.access_bits"] == 64
    assert get_model("lemaire2022").used()["memory.access_bits"] == 32
    other = get_model("memory45", base="horowitz45_int8", kind="flat")
    assert (other.constants["ac"], other.used()["base"], other.used()["memory.kind"]) == (
        0.03,
        "horowitz45_int8",
        "flat",
    )


@pytest.mark.parametrize("name", ["truenorth2014", "odin", "loihi2018", "cpu_i7", "paper", "memory45"])
def test_memory_cannot_be_added_to_what_contains_it(name: str) -> None:
    with pytest.raises(ValueError, match=r"all_in|contains its memory|has memory already"):
        with_memory(name)


def test_memory_costs_interpolate_horowitz() -> None:
    memory = Memory(access_bits=64, word_bytes=8)  # a word is one access
    points = {0: 0.0, 512: 5.0, 1024: 10.0, 2560: 15.0, 4096: 20.0, 131072: 100.0, 10**9: 100.0}  # words: pJ
    for words, pj in points.items():
        assert memory.word_pj(words) == pytest.approx(pj)
    assert Memory(access_bits=64).word_pj(2048) == pytest.approx(5.0)  # 4 of the 8 bytes
    assert Memory(access_bits=32).word_pj(2048) == pytest.approx(10.0)
    assert Memory(kind="flat").word_pj(1) == pytest.approx(4 * 24.96)
    assert Memory(kind="dram").word_pj(1) == pytest.approx(650.0)
    assert Memory(size_bytes=8192).word_pj(10**6) == pytest.approx(5.0)


@pytest.mark.parametrize(
    "values",
    [
        *({"kind": "rom"}, {"access_bits": 0}, {"word_bytes": -1}, {"size_bytes": 0}, {"dram_pj": float("nan")}),
        *({"sram": []}, {"sram": [[2, 1], [1, 2]]}, {"sram": [[1, 2, 3]]}, {"sram": [[8192, float("inf")]]}),
    ],
)
def test_a_memory_that_makes_no_sense_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="memory: "):
        Memory(**values)  # type: ignore[arg-type]


@pytest.mark.usefixtures("registry")
def test_a_file_of_models(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    memory = '\n[b.memory]\nkind = "flat"\nflat_pj_per_byte = 1.0\n'
    more = 'base = "horowitz45_int8"\nremarks = "mine"\ndisputed = true\n' + memory
    path.write_text(chip("a", "sop = 3.0, update = 12") + chip("b", "ac = 0.05", more=more))
    assert load_models(path) == ["a", "b"]
    assert get_model("a").constants == {"sop": 3.0, "update": 12}
    assert get_model("b").constants == {"ac": 0.05, "mac": 0.23, "mul": 0.2}
    assert get_model("b").memory == Memory(kind="flat", flat_pj_per_byte=1.0)
    with pytest.raises(ValueError, match="'a' is already registered"):
        load_models(path)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a\n", "is not TOML"),
        ("a = 3\n", "outside any model"),
        (chip("a", more="colour = 1\n"), "unknown key colour"),
        ('[a]\nsource = "x"\n', "technology, formula, evidence, scope missing"),
        (chip("a", evidence="guessed"), "evidence is 'guessed'; expected one of measured, simulated, estimated"),
        (chip("a", scope="some"), "scope is 'some'; expected one of per_term, all_in"),
        (chip("a", "sop = -1.0"), "constant sop is -1.0; expected a finite number"),
        (chip("a", "sop = inf"), "constant sop is inf"),
        (chip("a", "sop = nan"), "constant sop is nan"),
        (chip("a", "sop = true"), "constant sop is True"),
        (chip("a", "spo = 1.0"), "a constant is 'spo'"),
        (chip("a", "ac = 1.0"), "a price per AC and MAC"),
        (chip("a", "ac = 1.0, mac = 1.0, sop = 1.0"), "a price per AC and MAC"),
        (chip("a", "sop = 1.0, update_inactive = 1.0"), "update_inactive without update"),
        (chip("a", "sop = 1.0, update = 2.0", scope="all_in"), "all_in figure already contains update"),
        (
            chip("a", "ac = 1.0, mac = 2.0", scope="all_in", more='[a.memory]\nkind = "sram"\n'),
            "already contains memory",
        ),
        (chip("a", more='[a.memory]\nkind = "sram"\n'), "memory can only be added"),
        (chip("a", more="[a.memory]\nbits = 3\n"), "unknown key bits of its memory"),
        (chip("a", more='rule = "magic"\n'), "rule is 'magic'"),
        (chip("a", more='rule = "dense"\n'), "a constant is 'sop'"),
        (chip("a", more="remarks = 3\n"), "remarks is 3; expected a text"),
        (chip("a", more="options = { tile_spikes = true }\n"), "needs the constant tile_spike"),
        (chip("a", more="options = { speed = 1 }\n"), "an option is 'speed'"),
        (chip("a", more='base = "horowitz46"\n'), "no energy model 'horowitz46'"),
        (chip("horowitz45_int8"), "already registered"),
    ],
)
def test_a_faulty_file_registers_nothing_and_says_why(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text + chip("fine"))
    before = list_models()
    with pytest.raises(ValueError, match=message):
        load_models(path)
    assert list_models() == before


@pytest.mark.usefixtures("registry")
def test_a_model_made_in_python() -> None:
    mine = EnergyModel("mine", "3 nm", "2 SOP", "a test", "estimated", "all_in", {"sop": 2.0})
    assert register_model(mine) is get_model("mine")
    with pytest.raises(ValueError, match="already registered"):
        register_model(mine)
    with pytest.raises(ValueError, match="source is empty"):
        EnergyModel("mine", "3 nm", "2 SOP", "", "estimated", "all_in", {"sop": 2.0})
