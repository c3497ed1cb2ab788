"""For a teacher: learners' notebooks graded, and the exercises handed on to other graders.

submissions  learners and their notebooks in a folder
answers      what of a notebook is an answer: the definitions that the exercise's function needs
confined     what a process that runs learners' code may no longer do
inside       that process: one exercise of one learner, on fresh ranks
outside      the teacher's side of it: time, memory, output, what came back
grades       all of a folder: table, reports
sources      the exercises as they stand in the lab's own notebooks
export       the same for nbgrader and Otter-Grader, and with the solutions filled in
"""

from typing import TYPE_CHECKING

from tplab.lazy import lazy_names

if TYPE_CHECKING:
    from tplab.lab.grading.export import assert_passes as assert_passes
    from tplab.lab.grading.export import export_nbgrader as export_nbgrader
    from tplab.lab.grading.export import export_otter as export_otter
    from tplab.lab.grading.export import write_solutions as write_solutions
    from tplab.lab.grading.grades import Grades as Grades
    from tplab.lab.grading.grades import grade_folder as grade_folder

__getattr__, __dir__, __all__ = lazy_names(__name__)
