"""What people see: figures, panels, the preflight table, exercises.

style       colours, the figure card, the badge
figures/    tidy frame in, plotly figure out
pictures/   what moves: ES modules, each with an anywidget around it, each a page of its own
panels/     ipywidgets around the public functions
checks      what this machine can do, and what is wrong with it
choice      what it offers the ranks of a notebook
ranks       cells that run on every rank, %%ranks; target: which ranks those are
claims      the claims ledger: entries, recipes, verdicts
predict     the learner commits a number before the answer is seen; answers: the words and the picture for both
names       keys as people write them; known_links: the links that panels and pictures offer
sentences   words below a cell that a page wraps between words
shipped     the notebooks that tplab brings along, and a learner's copy of them
demo        the panels alone, as a page
progress    what was predicted and solved, in a file beside the notebooks; progress_table shows it
hangs       a run that hangs, caught: who waits for whom
still       pictures of what is live, for pages without its kernel; saving: on save they take the views' place
exercises   stubs' checkers
"""

from typing import TYPE_CHECKING

from tplab.lazy import lazy_names

if TYPE_CHECKING:
    from tplab.lab.checks import preflight as preflight
    from tplab.lab.checks import preflight_table as preflight_table
    from tplab.lab.choice import Choice as Choice
    from tplab.lab.choice import choices as choices
    from tplab.lab.exercises import check_admit as check_admit
    from tplab.lab.exercises import check_argmax as check_argmax
    from tplab.lab.exercises import check_attention as check_attention
    from tplab.lab.exercises import check_chunk_choice as check_chunk_choice
    from tplab.lab.exercises import check_chunks as check_chunks
    from tplab.lab.exercises import check_exchange as check_exchange
    from tplab.lab.exercises import check_int8_all_reduce as check_int8_all_reduce
    from tplab.lab.exercises import check_kv_bytes as check_kv_bytes
    from tplab.lab.exercises import check_mlp as check_mlp
    from tplab.lab.exercises import check_overlap as check_overlap
    from tplab.lab.exercises import check_place as check_place
    from tplab.lab.exercises import check_qkv as check_qkv
    from tplab.lab.exercises import check_reduction as check_reduction
    from tplab.lab.exercises import check_repair as check_repair
    from tplab.lab.exercises import check_ring as check_ring
    from tplab.lab.exercises import check_schedule as check_schedule
    from tplab.lab.exercises import check_score as check_score
    from tplab.lab.figures.advice import explain_advice as explain_advice
    from tplab.lab.figures.advice import explain_flips as explain_flips
    from tplab.lab.figures.collectives import explain_busbw as explain_busbw
    from tplab.lab.figures.collectives import explain_emulated as explain_emulated
    from tplab.lab.figures.collectives import explain_growth as explain_growth
    from tplab.lab.figures.collectives import explain_race as explain_race
    from tplab.lab.figures.collectives import explain_sweep as explain_sweep
    from tplab.lab.figures.crossover import explain_losses as explain_losses
    from tplab.lab.figures.generation import explain_stages as explain_stages
    from tplab.lab.figures.layers import explain_chunks as explain_chunks
    from tplab.lab.figures.layers import explain_overlap as explain_overlap
    from tplab.lab.figures.layers import explain_phases as explain_phases
    from tplab.lab.figures.layers import explain_quantised as explain_quantised
    from tplab.lab.figures.layers import explain_strategies as explain_strategies
    from tplab.lab.figures.layers import way_in_words as way_in_words
    from tplab.lab.figures.memory import explain_memory as explain_memory
    from tplab.lab.figures.memory import explain_shards as explain_shards
    from tplab.lab.figures.pipeline import explain_pipeline as explain_pipeline
    from tplab.lab.figures.pipeline_curves import explain_hops as explain_hops
    from tplab.lab.figures.pipeline_curves import explain_serving as explain_serving
    from tplab.lab.figures.profile import explain_profile as explain_profile
    from tplab.lab.figures.topology import explain_links as explain_links
    from tplab.lab.figures.topology import explain_placement as explain_placement
    from tplab.lab.figures.verification import explain_calibration as explain_calibration
    from tplab.lab.figures.verification import explain_verification as explain_verification
    from tplab.lab.hangs import Hang as Hang
    from tplab.lab.hangs import catch_hang as catch_hang
    from tplab.lab.panels.advisor import AdvisorPanel as AdvisorPanel
    from tplab.lab.panels.claims import claim_cards as claim_cards
    from tplab.lab.panels.claims import measure_claim as measure_claim
    from tplab.lab.panels.crossover import CrossoverPanel as CrossoverPanel
    from tplab.lab.panels.editor import EditorPanel as EditorPanel
    from tplab.lab.panels.fits import FitPanel as FitPanel
    from tplab.lab.panels.generation import GenerationPanel as GenerationPanel
    from tplab.lab.panels.generation import example_model as example_model
    from tplab.lab.panels.generation import example_prompts as example_prompts
    from tplab.lab.panels.generation import layouts_badge as layouts_badge
    from tplab.lab.panels.generation import layouts_frame as layouts_frame
    from tplab.lab.panels.generation import shares_in_words as shares_in_words
    from tplab.lab.panels.hang import HangPanel as HangPanel
    from tplab.lab.panels.hello import HelloPanel as HelloPanel
    from tplab.lab.panels.layers import LINKS as LINKS
    from tplab.lab.panels.layers import ChunkModel as ChunkModel
    from tplab.lab.panels.layers import OverlapPanel as OverlapPanel
    from tplab.lab.panels.layers import PhasesPanel as PhasesPanel
    from tplab.lab.panels.layers import linked_badge as linked_badge
    from tplab.lab.panels.ledger import LedgerPanel as LedgerPanel
    from tplab.lab.panels.links import LinkPanel as LinkPanel
    from tplab.lab.panels.memory_wall import MemoryWall as MemoryWall
    from tplab.lab.panels.memory_wall import ShardsPanel as ShardsPanel
    from tplab.lab.panels.memory_wall import small_model as small_model
    from tplab.lab.panels.pipeline import PipelinePanel as PipelinePanel
    from tplab.lab.panels.pipeline import ServingPanel as ServingPanel
    from tplab.lab.panels.pool import Pool as Pool
    from tplab.lab.panels.profile import ProfilePanel as ProfilePanel
    from tplab.lab.panels.race import RacePanel as RacePanel
    from tplab.lab.panels.schedule_studio import ScheduleStudio as ScheduleStudio
    from tplab.lab.panels.sweep import SweepPanel as SweepPanel
    from tplab.lab.panels.verification import CalibrationPanel as CalibrationPanel
    from tplab.lab.panels.verification import VerifyPanel as VerifyPanel
    from tplab.lab.panels.verification import verified_model as verified_model
    from tplab.lab.panels.writing import WritingPanel as WritingPanel
    from tplab.lab.pictures.editor import ScheduleEditor as ScheduleEditor
    from tplab.lab.pictures.fit import WillItFit as WillItFit
    from tplab.lab.pictures.painter import ShardPainter as ShardPainter
    from tplab.lab.pictures.playhead import PlayHead as PlayHead
    from tplab.lab.pictures.two_ranks import TwoRanks as TwoRanks
    from tplab.lab.predict import Predict as Predict
    from tplab.lab.progress_view import progress_table as progress_table
    from tplab.lab.sentences import say as say

__getattr__, __dir__, __all__ = lazy_names(__name__)
