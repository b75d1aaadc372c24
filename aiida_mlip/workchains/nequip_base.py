"""NequipBaseWorkChain: one training, brought to its end through walltime, lack of memory and divergence."""

from __future__ import annotations

from typing import Any

from aiida import orm
from aiida.common import AttributeDict
from aiida.engine import BaseRestartWorkChain, ExitCode, ProcessHandlerReport, process_handler, while_

from aiida_mlip.calculations.functions.train import lower_learning_rate, reduce_batch_size
from aiida_mlip.calculations.nequip_train import NequipTrainCalculation
from aiida_mlip.protocols.train import train_settings
from aiida_mlip.workchains.submit_once import SubmitOnceWorkChain

_CODES = NequipTrainCalculation.exit_codes


class NequipBaseWorkChain(SubmitOnceWorkChain, BaseRestartWorkChain):
    """Train one potential; go on after walltime, with smaller batches after lack of memory, slower after divergence.

    Entry point ``aiida_mlip.nequip_base``. A problem that no handler knows ends the workchain (``abort``); whatever
    the last training left is returned in any case.
    """

    _process_class = NequipTrainCalculation
    #: How often each problem may be dealt with.
    max_walltime, max_slower, max_smaller, max_again = 20, 3, 5, 1

    @classmethod
    def define(cls, spec: Any) -> None:  # Any: aiida-core ships no type for process specs
        """Ports, outline and exit codes."""
        super().define(spec)
        spec.expose_inputs(NequipTrainCalculation, namespace="nequip")
        spec.inputs["max_iterations"].default = lambda: orm.Int(10)
        spec.expose_outputs(NequipTrainCalculation)
        spec.outline(
            cls.setup,
            while_(cls.should_run_process)(
                cls.run_process,
                cls.inspect_process,
            ),
            cls.results,
        )
        spec.exit_code(410, "ERROR_STILL_DIVERGES", message="Training diverges also with a lower learning rate.")
        spec.exit_code(411, "ERROR_STILL_OUT_OF_MEMORY", message="Out of memory also with the smallest batches.")
        spec.exit_code(412, "ERROR_NO_PROGRESS", message="A whole walltime was not enough for one epoch.")
        spec.exit_code(413, "ERROR_NO_CHECKPOINT", message="Training left no checkpoint, twice.")

    def setup(self) -> None:
        """Take the inputs of the first training."""
        super().setup()
        self.ctx.inputs = AttributeDict(self.exposed_inputs(NequipTrainCalculation, "nequip"))
        self.ctx.handled = {"walltime": 0, "slower": 0, "smaller": 0, "again": 0}
        self.ctx.epochs = 0

    def inspect_process(self) -> ExitCode | None:
        """Deal with the training's problem, if any; on giving up return what it left."""
        code = super().inspect_process()
        if code is not None and code.status != 0:
            self.results()
        return code

    def results(self) -> ExitCode | None:
        """Attach the outputs of the last training that left any."""
        for node in reversed(self.ctx.children):
            if "summary" in node.outputs:
                self.out_many(self.exposed_outputs(node, NequipTrainCalculation))
                break
        return None

    # -- handlers ----------------------------------------------------------------------------------------------

    @process_handler(priority=600, exit_codes=[_CODES.ERROR_WALLTIME, _CODES.ERROR_INCOMPLETE])
    def handle_walltime(self, node: orm.CalcJobNode) -> ProcessHandlerReport:
        """Go on from the last checkpoint, as long as every run gets farther; one that was killed may fail to, once."""
        summary = node.outputs.summary.get_dict()
        if not summary["has_checkpoint"] or summary["epochs"] <= self.ctx.epochs:
            if node.exit_status == _CODES.ERROR_INCOMPLETE.status and not self._too_often("again", self.max_again):
                self.report(f"NequipTrainCalculation<{node.pk}> was interrupted at once: once more")
                return ProcessHandlerReport(do_break=True)
            return ProcessHandlerReport(do_break=True, exit_code=self.exit_codes.ERROR_NO_PROGRESS)
        if self._too_often("walltime", self.max_walltime):
            return ProcessHandlerReport(do_break=True, exit_code=self.exit_codes.ERROR_MAXIMUM_ITERATIONS_EXCEEDED)
        self.ctx.epochs = summary["epochs"]
        self.ctx.inputs.restart_folder = node.outputs.remote_folder
        self.report(f"NequipTrainCalculation<{node.pk}> reached epoch {summary['epochs']}: going on from there")
        return ProcessHandlerReport(do_break=True)

    @process_handler(priority=500, exit_codes=[_CODES.ERROR_NOT_FINITE, _CODES.ERROR_DIVERGED])
    def handle_divergence(self, node: orm.CalcJobNode) -> ProcessHandlerReport:
        """Lower the learning rate and begin again from the best checkpoint, or from the start if there is none."""
        if self._too_often("slower", self.max_slower) or not self._change_settings(lower_learning_rate):
            return ProcessHandlerReport(do_break=True, exit_code=self.exit_codes.ERROR_STILL_DIVERGES)
        self.ctx.inputs.pop("restart_folder", None)
        if "best_epoch" in node.outputs.summary.get_dict():
            self.ctx.inputs.pop("initial_potential", None)
            self.ctx.inputs.initial_folder = node.outputs.remote_folder
        self.ctx.epochs = 0
        rate = train_settings(self.ctx.inputs.settings.get_dict()).optimizer.learning_rate
        self.report(f"NequipTrainCalculation<{node.pk}> diverged: beginning again with learning rate {rate:.3g}")
        return ProcessHandlerReport(do_break=True)

    @process_handler(priority=400, exit_codes=[_CODES.ERROR_OUT_OF_MEMORY])
    def handle_out_of_memory(self, node: orm.CalcJobNode) -> ProcessHandlerReport:
        """Begin again with batches of half the size."""
        if self._too_often("smaller", self.max_smaller) or not self._change_settings(reduce_batch_size):
            return ProcessHandlerReport(do_break=True, exit_code=self.exit_codes.ERROR_STILL_OUT_OF_MEMORY)
        self.ctx.inputs.pop("restart_folder", None)
        self.ctx.epochs = 0
        self.report(f"NequipTrainCalculation<{node.pk}> ran out of memory: beginning again with smaller batches")
        return ProcessHandlerReport(do_break=True)

    @process_handler(
        priority=300,
        exit_codes=[_CODES.ERROR_NO_CHECKPOINT, _CODES.ERROR_NO_OUTPUT, _CODES.ERROR_OUTPUT_TRUNCATED],
    )
    def handle_missing_checkpoint(self, node: orm.CalcJobNode) -> ProcessHandlerReport:
        """Begin again from the start, once."""
        if self._too_often("again", self.max_again):
            return ProcessHandlerReport(do_break=True, exit_code=self.exit_codes.ERROR_NO_CHECKPOINT)
        self.ctx.inputs.pop("restart_folder", None)
        self.ctx.epochs = 0
        self.report(f"NequipTrainCalculation<{node.pk}> left no checkpoint: beginning again")
        return ProcessHandlerReport(do_break=True)

    # -- parts of handlers -------------------------------------------------------------------------------------

    def _too_often(self, problem: str, limit: int) -> bool:
        self.ctx.handled[problem] += 1
        return bool(self.ctx.handled[problem] > limit)

    def _change_settings(self, change: Any) -> bool:  # Any: a calcfunction
        """Replace the settings by what a calculation function makes of them; whether it could."""
        result, node = change.run_get_node(
            self.ctx.inputs.settings, metadata={"call_link_label": f"{change.__name__}_{self.ctx.iteration:02d}"}
        )
        if not node.is_finished_ok:
            self.report(f"{change.__name__}<{node.pk}>: {node.exit_message}")
            return False
        self.ctx.inputs.settings = result
        return True
