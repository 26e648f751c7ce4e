"""What training reads: features, windows and validation examples, mapped from the store."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from antpipe.core.batches import Examples, examples, sample, with_validation
from antpipe.core.catalogue import Catalogue, load_catalogue
from antpipe.errors import DataError, SameCommand
from antpipe.settings.methods import BEHAVIOUR
from antpipe.settings.training import TrainConfig
from antpipe.store.files import Sequences
from antpipe.store.next_command import spell
from antpipe.store.store import Store
from antpipe.training.methods.weak_positives import Marks, weak_positives


@dataclass(frozen=True)
class TrainingData:
    """Features and sequences of all domains together, and the validation examples of each domain.

    marks: which interactions of the sequences are weak positives, and why, if a method reads that.
    """

    catalogue: Catalogue
    sequences: tuple[Sequences, ...]
    validation: dict[str, Examples]
    marks: Marks | None = None

    def judged(self) -> int:
        """The number of positions that a validation reads."""
        return sum(map(len, self.validation.values()))

    def of_refit(self) -> "TrainingData":
        """The same data with the validation targets among those of training, and nothing to validate on."""
        return replace(self, sequences=tuple(with_validation(part) for part in self.sequences), validation={})


def load_training_data(
    store: Store, domains: Sequence[str], config: TrainConfig, *, words: bool = False
) -> TrainingData:
    """Everything that training on these domains reads. words: for a model with a floor that reads them.

    Raises DataError if the store lacks something, or if the domains cannot be trained together.
    """
    states = [store.domain(name).state(modality) for name in domains for modality in config.features()]
    if states and not any(one.next_command or one.status in ("fresh", "partial") for one in states):
        why = "; ".join(dict.fromkeys(one.why for one in states))
        raise DataError(
            f"{', '.join(domains)}: no features to learn from, and none to build: {why}; --modalities none learns ids",
            SameCommand({"--modalities": "none", "--transductive": None}, without=("--no-transductive",)),
        )
    catalogue = load_catalogue(store, domains, config.features(), config.whitened, words=words)
    sequences = tuple(store.domain(name).sequences() for name in domains)
    lengths = {part.max_len for part in sequences}
    if len(lengths) > 1:
        raise DataError(
            f"{', '.join(domains)}: sequences built with different --max-len {sorted(lengths)}",
            spell("build-sequences", domains=domains, store=store.root),
        )
    validation = {name: examples(part, "valid") for name, part in zip(domains, sequences, strict=True)}
    validation = {name: sample(part, config.valid_sample) for name, part in validation.items() if len(part)}
    if not validation:
        raise DataError(f"{', '.join(domains)}: no user has an item to validate on, which takes 3 items per user")
    marks = weak_positives(store, domains, sequences) if config.method == BEHAVIOUR else None
    return TrainingData(catalogue, sequences, validation, marks)
