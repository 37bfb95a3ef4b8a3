"""Conditions to tokens to files one can play or look at."""

from cdcd.generation.base import Generator, read_sampler, read_task
from cdcd.generation.music import MusicGenerator
from cdcd.generation.pictures import Cut, Generated, PictureGenerator

__all__ = [
    "Cut",
    "Generated",
    "Generator",
    "MusicGenerator",
    "PictureGenerator",
    "read_sampler",
    "read_task",
]
