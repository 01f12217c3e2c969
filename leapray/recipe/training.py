"""How a network is trained, and on what."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from leapray.recipe.sections import Choice, Section, Seed

CpuThreading = Literal["rows", "operators"]


Select = Literal["skill", "r2"]
"""Which score chooses checkpoints, trials, variants and averages."""


class MovingAverage(Section):
    """An exponential moving average of the weights, which is then what is validated and saved; defaults as in the 5th-place solution."""

    decay: float = Field(0.99, gt=0, lt=1)
    every: PositiveInt = 8
    """Steps between updates."""
    after: NonNegativeInt = 50
    """Up to this step updates copy the weights."""
    ramp: bool = False
    """Let the decay rise as ``min(decay, 1 - (1 + s)^(-2/3))``, s steps after ``after``."""


class EqualAverage(Section):
    """Stochastic weight averaging (Izmailov et al. 2018): the mean of the weights at the ends of epochs, which is then what is validated
    and saved; defaults as in the competition's 5th-place solution. All epochs are trained, whatever ``patience`` says."""

    start: PositiveInt = 13
    """The first epoch, counted from 1, whose end gives a member."""
    lr: PositiveFloat = 1e-4
    """The learning rate from then on, whatever the schedule."""
    anneal: NonNegativeInt = 10
    """Epochs in which the rate goes there from where it was, along half a cosine."""


class Start(Section):
    """A model whose weights a training begins with, as they are; a bare string is its directory."""

    model: str
    transform: Literal["same", "any"] = "same"
    """Whether the data must be scaled as the model's was."""

    @model_validator(mode="before")
    @classmethod
    def _model_alone(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value


class Profile(Section):
    """Which steps of a training the profiler records."""

    start: NonNegativeInt
    """Steps before the first one that is recorded, through all epochs; the first few of a training are slow."""
    steps: PositiveInt = 5


class Training(Section):
    """How a network is trained. Batch size is global: the rows of one step over all workers."""

    run: str
    start: Start | None = None
    """The model to begin with; by default weights are drawn by ``seed``."""
    sources: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The sources to train on; by default all that have training months."""
    epochs: PositiveInt
    batch_size: PositiveInt
    loss: Choice = Choice(name="huber")
    optimizer: Choice = Choice(name="adamw")
    schedule: Choice = Choice(name="constant")
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    accumulate: PositiveInt = 1
    """Parts in which a step's rows pass through the network; the gradient is that of all of them."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of a step's gradient."""
    ema: MovingAverage | None = None
    swa: EqualAverage | None = None
    validations: PositiveInt = 1
    """Validations of an epoch, evenly spread; the last is at its end."""
    patience: PositiveInt | None = None
    """Stop after this many validations without a better score."""
    select: Select = "skill"
    """The score that chooses: skill, or the competition's R2 over the learned columns, which a few columns can dominate that hardly vary in
    the rows at hand."""
    keep_best: NonNegativeInt = 1
    """Models of the best validations that the run keeps; the best of all is its model."""
    keep_last: NonNegativeInt = 0
    """Models of the last validations that the run keeps beside them."""
    checkpoint_seconds: PositiveFloat = 60
    """Least time between checkpoints inside an epoch; each validation makes one too."""
    profile: Profile | None = None
    """Record these steps with torch.profiler, in ``profile/`` of the run."""
    trackers: tuple[Literal["tensorboard", "mlflow"], ...] = ("tensorboard",)
    """What the records of the run are also written for."""
    seed: Seed = 0
    pairs: bool = False
    """Every step takes equally many rows of each source."""
    lanes: PositiveInt | None = None
    """Streams of shards that share every step: a multiple of the workers. The default, 8 or the next multiple, makes an epoch the
    same for 1, 2, 4 and 8 workers."""

    @model_validator(mode="after")
    def _averages(self) -> Self:
        if self.swa is not None and self.ema is not None:
            raise ValueError("swa and ema exclude each other: a training has one average of its weights")
        if self.swa is not None and self.swa.start > self.epochs:
            raise ValueError(f"swa.start {self.swa.start} comes after the last of {self.epochs} epochs, so nothing would be averaged")
        return self


class Resources(Section):
    """What the training takes. ``workers: 0`` trains in the calling process, by the same code."""

    workers: int = Field(default=0, ge=0)
    min_workers: PositiveInt | None = None
    """Train on as many workers as there are, this many or more, and take up others as they come; the global batch stays the same. By
    default a training waits for all of them."""
    use_gpu: bool = False
    cpus_per_worker: PositiveInt = 1
    cpu_threading: CpuThreading | None = None
    """What the threads of a process that trains on a CPU divide: the rows of a step, or each of its operators. By default ``rows`` for
    recurrent networks and ``operators`` for all others."""
    gpus_per_worker: Annotated[float, Field(gt=0, le=1)] = 1.0
    """With ``use_gpu``: less than 1 lets several trainings of one worker share a GPU."""
    gpus_per_model: Annotated[float, Field(gt=0, le=1)] | None = None
    """With ``use_gpu``, of an actor that has models to predict with; by default as much as lets several models fill a GPU together."""
    models_apart: bool | None = None
    """Whether each of several models that predict is an actor of its own; by default on GPUs, not on CPUs."""
    worker_resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """What a worker takes beside, by Ray's name, such as ``accelerator_type:H100: 0.001`` or a resource that only some nodes were started
    with."""
    data_nodes: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes on which the tasks run that fit, shuffle and scale data, as given to ``ray start --labels``."""

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change while they train."""
        return self.min_workers is not None and self.min_workers < self.workers

    @property
    def processes(self) -> int:
        """Processes that train, at the least."""
        return self.min_workers or max(self.workers, 1)

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        if self.gpus_per_worker < 1 and self.workers > 1:
            raise ValueError(f"gpus_per_worker {self.gpus_per_worker:g} of {self.workers} workers: only a lone worker can share a GPU")
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} are more than workers {self.workers}")
        return self
