"""From a trained ANN to a spiking network: conversion, calibration, early exit, few time steps.

    net = convert(ann, calibration_loader, T=16)         # images [B, C, H, W] -> logits [T, B, K]

docs/conversion.md describes the methods and what converts.
"""

if "." not in __name__:
    raise ModuleNotFoundError("import this package as spikeloom.conversion", name=__name__)

from spikeloom.conversion.balance import diet_from_ann
from spikeloom.conversion.choices import METHODS, Settings, settings
from spikeloom.conversion.comparison import Comparison, compare
from spikeloom.conversion.diet_official import diet_from_official, relu_from_official, to_official
from spikeloom.conversion.diet_vgg import DietConfig, DietVGG, ReluVGG
from spikeloom.conversion.early_exit import EarlyExit, ExitCalibration
from spikeloom.conversion.exit_report import ExitReport
from spikeloom.conversion.files import load_converted, save_converted
from spikeloom.conversion.from_ann import convert
from spikeloom.conversion.iir import prune_time
from spikeloom.conversion.max_pool import CountMaxPool
from spikeloom.conversion.network import ConvertedNet
from spikeloom.conversion.nir_export import to_nir
from spikeloom.conversion.nir_import import from_nir
from spikeloom.conversion.offset import OffsetIF
from spikeloom.conversion.qcfs import QCFS
from spikeloom.conversion.qcfs_network import with_qcfs
from spikeloom.conversion.quantised import ClippedReLU, QuantisedReLU
from spikeloom.conversion.rate_if import RateIF
from spikeloom.conversion.readout import Readout, suggested_delay
from spikeloom.conversion.report import LayerReport, Report
from spikeloom.conversion.trace import NotConvertibleError

__all__ = [
    "METHODS",
    "QCFS",
    "ClippedReLU",
    "Comparison",
    "ConvertedNet",
    "CountMaxPool",
    "DietConfig",
    "DietVGG",
    "EarlyExit",
    "ExitCalibration",
    "ExitReport",
    "LayerReport",
    "NotConvertibleError",
    "OffsetIF",
    "QuantisedReLU",
    "RateIF",
    "Readout",
    "ReluVGG",
    "Report",
    "Settings",
    "compare",
    "convert",
    "diet_from_ann",
    "diet_from_official",
    "from_nir",
    "load_converted",
    "prune_time",
    "relu_from_official",
    "save_converted",
    "settings",
    "suggested_delay",
    "to_nir",
    "to_official",
    "with_qcfs",
]
