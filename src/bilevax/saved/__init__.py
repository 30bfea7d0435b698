"""Fitted models in folders, without pickle: written, read back, and used on new files."""

from bilevax.saved.files import FileModel as FileModel
from bilevax.saved.files import Predictions as Predictions
from bilevax.saved.models import load_model as load_model
from bilevax.saved.models import save_model as save_model
