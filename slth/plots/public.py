"""The public names of `slth.plots`. Importing this module imports seaborn, matplotlib and pandas."""

from slth.plots.across import overlay
from slth.plots.baselines import BYTES_COLUMNS, loss_against_bytes
from slth.plots.curves import Curve, Run
from slth.plots.depth import DEPTH_COLUMNS, error_against_depth
from slth.plots.entries import Entry
from slth.plots.errors import ERROR_COLUMNS, SIDES, error_against_length, error_against_width
from slth.plots.hidden import HIDDEN_COLUMNS, error_against_block, gap_against_candidates
from slth.plots.layout import SIZES, Layout
from slth.plots.lemma import CONSTANT_COLUMNS, TARGETS, constant
from slth.plots.looks import CERTIFICATE, MEAN, MEDIAN, Look, looks_of
from slth.plots.marks import ZERO
from slth.plots.mixing import MIXING_COLUMNS, difference_to_mha, error_by_variant, loss_by_variant
from slth.plots.pruning import PRUNING_COLUMNS, loss_against_parameters, loss_against_steps
from slth.plots.qk_scale import QK_SCALE_COLUMNS, loss_against_qk_scale
from slth.plots.rate import RATE_COLUMNS, above_limit
from slth.plots.registry import CURVES, ENTRIES, across_runs, figure_of, figures
from slth.plots.tickets import KEPT_COLUMNS, OVERLAP_COLUMNS, kept_share, ticket_overlap
from slth.plots.timing import SPEED_COLUMNS, speed

__all__ = [
    "BYTES_COLUMNS",
    "CERTIFICATE",
    "CONSTANT_COLUMNS",
    "CURVES",
    "DEPTH_COLUMNS",
    "ENTRIES",
    "ERROR_COLUMNS",
    "HIDDEN_COLUMNS",
    "KEPT_COLUMNS",
    "MEAN",
    "MEDIAN",
    "MIXING_COLUMNS",
    "OVERLAP_COLUMNS",
    "PRUNING_COLUMNS",
    "QK_SCALE_COLUMNS",
    "RATE_COLUMNS",
    "SIDES",
    "SIZES",
    "SPEED_COLUMNS",
    "TARGETS",
    "ZERO",
    "Curve",
    "Entry",
    "Layout",
    "Look",
    "Run",
    "above_limit",
    "across_runs",
    "constant",
    "difference_to_mha",
    "error_against_block",
    "error_against_depth",
    "error_against_length",
    "error_against_width",
    "error_by_variant",
    "figure_of",
    "figures",
    "gap_against_candidates",
    "kept_share",
    "looks_of",
    "loss_against_bytes",
    "loss_against_parameters",
    "loss_against_qk_scale",
    "loss_against_steps",
    "loss_by_variant",
    "overlay",
    "speed",
    "ticket_overlap",
]
