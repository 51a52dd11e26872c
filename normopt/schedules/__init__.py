"""Schedules with cosine restarts, and weight decays for a number of steps."""

from normopt.schedules.cosine import cosine_restarts as cosine_restarts
from normopt.schedules.decay import normalized_decay as normalized_decay
from normopt.schedules.restarting import current_eta as current_eta
from normopt.schedules.restarting import restart as restart
from normopt.schedules.warm_restarts import WarmRestarts as WarmRestarts
from normopt.schedules.warm_restarts import WarmRestartsState as WarmRestartsState
