"""The configuration of a run: its settings, their defaults, and what they allow."""

from ancra_jax.config.schema import WEIGHTS as WEIGHTS
from ancra_jax.config.schema import AttackConfig as AttackConfig
from ancra_jax.config.schema import Config as Config
from ancra_jax.config.schema import DataConfig as DataConfig
from ancra_jax.config.schema import DistillationConfig as DistillationConfig
from ancra_jax.config.schema import DistributionalRobustnessConfig as DistributionalRobustnessConfig
from ancra_jax.config.schema import EmaConfig as EmaConfig
from ancra_jax.config.schema import EvaluationConfig as EvaluationConfig
from ancra_jax.config.schema import ExtraDataConfig as ExtraDataConfig
from ancra_jax.config.schema import MethodConfig as MethodConfig
from ancra_jax.config.schema import ModelConfig as ModelConfig
from ancra_jax.config.schema import NegativeContrastConfig as NegativeContrastConfig
from ancra_jax.config.schema import OptimizerConfig as OptimizerConfig
from ancra_jax.config.schema import SecondOrderConfig as SecondOrderConfig
from ancra_jax.config.schema import SelectionConfig as SelectionConfig
from ancra_jax.config.schema import SelfAdaptiveConfig as SelfAdaptiveConfig
from ancra_jax.config.schema import SwaConfig as SwaConfig
from ancra_jax.config.schema import WeightPerturbationConfig as WeightPerturbationConfig
from ancra_jax.config.schema import extra_examples as extra_examples
from ancra_jax.config.schema import from_mapping as from_mapping
from ancra_jax.config.schema import to_mapping as to_mapping
