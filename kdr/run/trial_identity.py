"""Gives trials their identity: fingerprints of data and weights, each taken once.

Imports neither torch nor Ray, so that `kdr plan` starts fast.
"""

from collections.abc import Callable

from kdr.config.study import Study
from kdr.config.trial import Trial, TrialConfig
from kdr.data.fingerprint import data_fingerprint
from kdr.detectors.identity import content_id
from kdr.plan.keys import make_trial
from kdr.storage.layout import Storage


def trial_maker(study: Study, storage: Storage) -> Callable[[TrialConfig], Trial]:
    """Returns a function that gives a study's trials their identity. It caches fingerprints,
    because taking one may read every file of a data set.
    """
    data_ids: dict[str, str] = {}
    weights_ids: dict[str, str] = {}

    def weights_id(source: str) -> str:
        if source not in weights_ids:
            weights_ids[source] = content_id(source)
        return weights_ids[source]

    def make(config: TrialConfig) -> Trial:
        data = config.data.model_dump_json()
        if data not in data_ids:
            data_ids[data] = data_fingerprint(config.data, storage)
        return make_trial(
            config, data_id=data_ids[data], weights_id=weights_id, workers=study.resources.workers
        )

    return make
