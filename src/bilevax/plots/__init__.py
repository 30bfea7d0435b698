"""Figures of runs and experiments, drawn without the global state of pyplot.

Texts are not parsed as formulas; control characters are replaced, and long texts are shortened. Figures are PNG files,
written completely or not at all. Wrong types or shapes, and a path that cannot be written, raise InputError.
"""

from bilevax.plots.curves import Line as Line
from bilevax.plots.curves import LinePanel as LinePanel
from bilevax.plots.curves import Panel as Panel
from bilevax.plots.curves import convergence as convergence
from bilevax.plots.curves import curve_panels as curve_panels
from bilevax.plots.curves import line_panels as line_panels
from bilevax.plots.curves import loss_against_strength as loss_against_strength
from bilevax.plots.drawing import BLUE as BLUE
from bilevax.plots.drawing import COLOURS as COLOURS
from bilevax.plots.drawing import GREEN as GREEN
from bilevax.plots.drawing import ORANGE as ORANGE
from bilevax.plots.drawing import PURPLE as PURPLE
from bilevax.plots.drawing import RED as RED
from bilevax.plots.drawing import SKY as SKY
from bilevax.plots.drawing import STYLE as STYLE
from bilevax.plots.histograms import bars as bars
from bilevax.plots.histograms import weight_histogram as weight_histogram
from bilevax.plots.pictures import change_sheet as change_sheet
from bilevax.plots.pictures import contact_sheet as contact_sheet
from bilevax.plots.pictures import task_sheet as task_sheet
