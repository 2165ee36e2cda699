"""Targets of attacks: functions from numbers to scores, with inputs and labels that have been checked."""

from .labels import encode_labels as encode_labels
from .target import AttackTarget as AttackTarget
