"""Reviewing suspects: a page on which a person decides, and decisions applied to the data."""

from bilevax.applications.denoising.review.apply import apply_decisions as apply_decisions
from bilevax.applications.denoising.review.decisions import Decision as Decision
from bilevax.applications.denoising.review.decisions import Decisions as Decisions
from bilevax.applications.denoising.review.decisions import automatic_decisions as automatic_decisions
from bilevax.applications.denoising.review.decisions import read_decisions as read_decisions
from bilevax.applications.denoising.review.decisions import short_digest as short_digest
from bilevax.applications.denoising.review.listing import page_suspects as page_suspects
from bilevax.applications.denoising.review.listing import suspects_frame as suspects_frame
from bilevax.applications.denoising.review.page import Review as Review
from bilevax.applications.denoising.review.page import Suspect as Suspect
from bilevax.applications.denoising.review.page import review_page as review_page
from bilevax.applications.denoising.review.thumbnails import thumbnail as thumbnail
