"""Schedules, a file for each family. A new schedule is a class in its family's file and a line here."""

from stepd.schedules.base import Line as Line
from stepd.schedules.base import Schedule as Schedule
from stepd.schedules.base import base_for as base_for
from stepd.schedules.compose import Chained as Chained
from stepd.schedules.compose import Sequential as Sequential
from stepd.schedules.constant import Constant as Constant
from stepd.schedules.cosine import CosineAnnealing as CosineAnnealing
from stepd.schedules.cosine import CosineWarmRestarts as CosineWarmRestarts
from stepd.schedules.cycle import Cyclic as Cyclic
from stepd.schedules.cycle import OneCycle as OneCycle
from stepd.schedules.decay import Exponential as Exponential
from stepd.schedules.decay import FromList as FromList
from stepd.schedules.decay import MultiStep as MultiStep
from stepd.schedules.decay import Polynomial as Polynomial
from stepd.schedules.decay import Step as Step
from stepd.schedules.factor import ConstantFactor as ConstantFactor
from stepd.schedules.factor import LinearFactor as LinearFactor
from stepd.schedules.plateau import PlateauState as PlateauState
from stepd.schedules.plateau import ReduceOnPlateau as ReduceOnPlateau
from stepd.schedules.warmup import Cosine as Cosine
from stepd.schedules.warmup import InverseSqrt as InverseSqrt
from stepd.schedules.warmup import Linear as Linear
from stepd.schedules.warmup import Warmup as Warmup
from stepd.schedules.warmup import WarmupStableDecay as WarmupStableDecay
