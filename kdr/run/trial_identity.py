"""Gives trials their identity: reads what data and weights are, once each. Without torch and ray,
so that `plan` is instant.
"""

from collections.abc import Callable

from kdr.config.study import Study
from kdr.config.trial import Trial, TrialConfig
from kdr.data.fingerprint import data_fingerprint
from kdr.detectors.identity import content_id
from kdr.plan.keys import make_trial
from kdr.storage.layout import Storage


def trial_maker(study: Study, storage: Storage) -> Callable[[TrialConfig], Trial]:
    """Gives trials their identity; fingerprints of data and weights are taken once."""
    data_ids: dict[str, str] = {}
    weights_ids: dict[str, str] = {}

    def weights_id(source: str) -> str:
        if source not in weights_ids:
            weights_ids[source] = content_id(source)
        return weights_ids[source]

    def make(config: TrialConfig) -> Trial:
        name = config.data.model_dump_json()
        if name not in data_ids:
            data_ids[name] = data_fingerprint(config.data, storage)
        return make_trial(
            config, data_id=data_ids[name], weights_id=weights_id, workers=study.resources.workers
        )

    return make
