"""Settings of a training: what a person may choose, with units in the keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from aiida_mlip.errors import ProtocolError
from aiida_mlip.protocols.model import SpecModel, check_name, from_protocol

Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]

#: Validation rows below which the error on them does not choose the weights of a model of several levels of theory.
FEWEST_TO_CHOOSE: Final[int] = 10
#: Methods by which a model of several levels of theory tells them apart.
JOINT_METHODS: Final[tuple[str, ...]] = ("embedding", "types")
#: Sections of the nequip-train configuration that ``nequip`` may override.
NEQUIP_SECTIONS: Final[tuple[str, ...]] = ("data", "trainer", "training_module", "global_options")


class SplitSettings(SpecModel):
    """How rows are divided into training, validation and test parts.

    :param seed: of the assignment of groups to parts.
    :param test: fraction of the rows kept for the test, common to all members of a committee.
    :param val: fraction of the rows kept for validation, different for each member.
    :param group_by: ``lineage`` keeps rows of one group or one parent frame together; ``frame`` only rows of one frame.
    :param bag: fraction of the remaining groups that each member trains on.
    """

    seed: int = 0
    test: Fraction = 0.1
    val: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    group_by: Literal["lineage", "frame"] = "lineage"
    bag: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> SplitSettings:
        if self.test + self.val >= 1.0:
            raise ValueError(f"test + val must stay below 1, got {self.test} + {self.val}")
        return self


class ModelSettings(SpecModel):
    """Hyperparameters of the model; fixed by the potential in a warm start.

    :param architecture: ``nequip`` (doi:10.1038/s41467-022-29939-5), or the strictly local ``allegro``
        (doi:10.1038/s41467-023-36329-y; needs nequip-allegro beside nequip-train).
    :param num_features: of NequIP: of each degree; of Allegro: scalars.
    :param num_tensor_features: of Allegro: of each degree; nothing: half of ``num_features``.
    :param parity: also features of odd mirror parity.
    :param radial_mlp_width: of the network of distances; of Allegro: of that of distances and elements.
    """

    architecture: Literal["nequip", "allegro"] = "nequip"
    cutoff_ang: Positive
    num_layers: Count
    l_max: Annotated[int, Field(ge=0, le=6)]
    num_features: Count
    num_tensor_features: Count | None = None
    parity: bool = False
    num_bessels: Count = 8
    radial_mlp_depth: Count = 1
    radial_mlp_width: Count = 64
    polynomial_cutoff_p: Count = 6
    dtype: Literal["float32", "float64"] = "float32"

    @model_validator(mode="after")
    def _of_this_architecture(self) -> ModelSettings:
        if self.architecture == "nequip" and self.num_tensor_features is not None:
            raise ValueError("num_tensor_features: only Allegro has them apart from num_features")
        return self


class LossSettings(SpecModel):
    """Weights of the mean squared errors of energy per atom (eV), forces (eV/Å) and stress (eV/Å³)."""

    energy: NonNegative = 1.0
    forces: NonNegative = 1.0
    stress: NonNegative = 0.0

    @model_validator(mode="after")
    def _something_to_learn(self) -> LossSettings:
        if self.energy == 0.0 and self.forces == 0.0 and self.stress == 0.0:
            raise ValueError("all weights of the loss are zero")
        return self


class OptimizerSettings(SpecModel):
    """Adam (doi:10.48550/arXiv.1412.6980); its learning rate rises over ``warmup_epochs``, then follows ``schedule``.

    :param learning_rate: the highest one.
    :param schedule: ``cosine`` falls to ``final_fraction`` of it over the epochs; ``plateau`` halves it after
        ``patience`` epochs without a better validation; ``constant``.
    :param warmup_epochs: of the cosine schedule.
    """

    learning_rate: Positive
    weight_decay: NonNegative = 0.0
    amsgrad: bool = True
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    final_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    patience: Count = 20


class MultiFidelitySettings(SpecModel):
    """One model of several levels of theory (doi:10.48550/arXiv.2409.07947).

    :param fidelities: names of the levels, cheap first; their order is the index that the model is told.
    :param method: ``embedding``: the model is told the level of each frame, NequIP only; ``types``: every element has a
        type of its own at every level, by default where the architecture is Allegro; ``pooled``: the model is not told
        (a baseline).
    :param num_features: numbers by which an embedding knows a level.
    :param target_share: share of the rows at the target (:attr:`TrainSettings.target`) among the frames of an epoch,
        reached by repeating them a whole number of times; 0: no repetition.
    """

    fidelities: Annotated[tuple[str, ...], Field(min_length=2)]
    method: Literal["embedding", "types", "pooled"] = "embedding"
    num_features: Count = 8
    target_share: Fraction = 0.5

    @model_validator(mode="after")
    def _one_index_each(self) -> MultiFidelitySettings:
        for index, name in enumerate(self.fidelities):
            if (first := self.fidelities.index(name)) != index:
                raise ValueError(
                    f"two fidelities with the same index: {name!r} is named as number {first} and as number {index} of "
                    f"{list(self.fidelities)}"
                )
        return self


class TrainSettings(SpecModel):
    """Everything that decides a training, apart from data, codes and computer.

    :param committee: number of members M; each has its own seed and validation set.
    :param member: number of the member of the committee that a single training is for.
    :param seed: of the weights and the order of batches; member ``i`` takes ``seed + i``.
    :param fidelity: level of theory to train on; may be left out when the dataset is labelled at one only. With
        ``multi_fidelity`` the one that counts, by default its last.
    :param multi_fidelity: train on several levels of theory; nothing: on one.
    :param device: ``auto`` takes a GPU when there is one.
    :param threads: of torch on the CPU; by default those the scheduler gave to the job.
    :param reference: energies of isolated atoms ``isolated``, or ``fit``: those plus a ridge fit of what remains. With
        several levels the differences between them are fitted on the frames that both label, and isolated atoms count
        only where all levels have them.
    :param batch_size: frames per step.
    :param max_epochs: passes over the training frames.
    :param time_limit_s: seconds of training of one job, after which it is continued in another; by default what the
        job's walltime leaves after start-up and packaging.
    :param stop_after: epochs without a better validation after which training ends; nothing: never.
    :param ema_decay: of the exponential moving average of the weights, which is what is validated and kept.
    :param checkpoint: which weights are kept: those with the ``best`` validation error, or the ``last``; nothing: see
        :meth:`keeps_last`.
    :param grad_clip: largest norm of a gradient.
    :param divergence_factor: a validation error this many times the best one, for
        ``divergence_epochs`` epochs, makes the live monitor stop the training.
    :param calibration_level: probability that an error is below its calibrated bound; for committees.
    :param nequip: merged last into the configuration of nequip-train; callbacks are appended.
    """

    split: SplitSettings = SplitSettings()
    committee: Count = 1
    member: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0)] = 1
    fidelity: str | None = None
    multi_fidelity: MultiFidelitySettings | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Count | None = None
    reference: Literal["fit", "isolated"] = "fit"
    model: ModelSettings
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings
    batch_size: Count
    max_epochs: Count
    time_limit_s: Count | None = None
    stop_after: Count | None = None
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    checkpoint: Literal["best", "last"] | None = None
    grad_clip: Positive | None = None
    divergence_factor: Annotated[float, Field(gt=1.0)] = 100.0
    divergence_epochs: Count = 5
    calibration_level: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9
    nequip: dict[str, Any] = Field(default_factory=dict)

    @property
    def target(self) -> str | None:
        """Level of theory that the potential is for; nothing: the only one of the dataset."""
        if self.fidelity is None and self.multi_fidelity is not None:
            return self.multi_fidelity.fidelities[-1]
        return self.fidelity

    @property
    def levels(self) -> tuple[str, ...]:
        """All levels of theory of a training on several, in the order of the model's index; else none."""
        return () if self.multi_fidelity is None else self.multi_fidelity.fidelities

    @property
    def target_share(self) -> float:
        """Share of the frames of an epoch that the target is to have; 0: as it comes."""
        return 0.0 if self.multi_fidelity is None else self.multi_fidelity.target_share

    @property
    def anneals(self) -> bool:
        """Whether the learning rate falls to its end: nothing ends the training before."""
        return self.optimizer.schedule == "cosine" and self.stop_after is None

    def keeps_last(self, n_validated: int) -> bool:
        """Whether the last weights are kept, not those with the best validation error.

        Where nothing is said: with several levels of theory, when fewer than :data:`FEWEST_TO_CHOOSE` rows at the
        target validate and the learning rate falls to its end. So few errors scatter more from epoch to epoch than
        the model improves, and would choose an early one (docs/adr/0095-last-weights-with-few-dear-labels.md).

        :param n_validated: rows at the target that validate.
        """
        if self.checkpoint is not None:
            return self.checkpoint == "last"
        return self.multi_fidelity is not None and self.anneals and n_validated < FEWEST_TO_CHOOSE

    @property
    def joint(self) -> bool:
        """Whether the model is told the level of theory of each frame."""
        return self.method in JOINT_METHODS

    @property
    def method(self) -> str | None:
        """How levels of theory are told apart; nothing: there is one."""
        return None if self.multi_fidelity is None else self.multi_fidelity.method

    @property
    def level_types(self) -> int:
        """How many types of its own the model has for every element."""
        return len(self.levels) if self.method == "types" else 1

    @model_validator(mode="before")
    @classmethod
    def _method_of_architecture(cls, value: Any) -> Any:
        """What Allegro can do, where no method is named."""
        levels, model = (value.get(key) if isinstance(value, Mapping) else None for key in ("multi_fidelity", "model"))
        if not (isinstance(levels, Mapping) and isinstance(model, Mapping)) or model.get("architecture") != "allegro":
            return value
        return {**value, "multi_fidelity": {"method": "types", **levels}}

    @model_validator(mode="after")
    def _architecture_can(self) -> TrainSettings:
        if self.model.architecture == "allegro" and self.method == "embedding":
            raise ValueError(
                "multi_fidelity.method: 'embedding' needs model.architecture 'nequip'; Allegro cannot be told the "
                "level of a frame, use 'types'"
            )
        return self

    @model_validator(mode="after")
    def _target_is_a_level(self) -> TrainSettings:
        if self.levels and self.target not in self.levels:
            raise ValueError(f"fidelity {self.fidelity!r} is none of multi_fidelity.fidelities {list(self.levels)}")
        return self

    @field_validator("nequip")
    @classmethod
    def _known_sections(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            check_name("section", name, list(NEQUIP_SECTIONS), where="nequip")
        return value


def train_settings(spec: Mapping[str, Any]) -> TrainSettings:
    """Settings from ``{"protocol": "fast", **overrides}``; without ``protocol`` the default one.

    :raises ProtocolError: unknown protocol, key or a wrong value; names the path and the nearest valid key.

    >>> train_settings({"protocol": "fast", "committee": 3}).committee
    3
    """
    if not isinstance(spec, Mapping):
        raise ProtocolError(f"train: expected a mapping of keys, got {type(spec).__name__}")
    overrides = dict(spec)
    protocol = overrides.pop("protocol", None)
    return from_protocol(TrainSettings, "train", protocol, overrides)


def lower_learning_rate(settings: Mapping[str, Any], *, factor: float = 0.3) -> dict[str, Any]:
    """Settings with a lower learning rate, and gradients clipped: what helps against a training that diverges.

    :raises ProtocolError: the settings are not valid.
    """
    full = train_settings(settings).model_dump()
    full["optimizer"]["learning_rate"] *= factor
    full["grad_clip"] = min(full["grad_clip"] or 10.0, 10.0)
    return full


def reduce_batch_size(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with half the frames per step: what helps against lack of memory.

    :raises ProtocolError: the settings are not valid, or there is only one frame per step.
    """
    full = train_settings(settings).model_dump()
    if full["batch_size"] == 1:
        raise ProtocolError("train.batch_size: already 1, it cannot be reduced")
    full["batch_size"] //= 2
    return full
