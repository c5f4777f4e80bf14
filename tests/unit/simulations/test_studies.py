"""The studies: their trials, what is kept of these, their attacks, and the pages they write."""

import importlib
import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest
import torch

from fedlora import products
from fedlora.adapter import AdapterState, AdapterUpdate
from fedlora.runtime.plan import plan
from fedlora.runtime.simulation import start
from simulations.studies import attacks, trials
from simulations.studies.__main__ import STUDIES
from simulations.studies.page import write_page
from simulations.studies.trials import Outcome, Result, Trial
from tests.strategies import adapter_spec
