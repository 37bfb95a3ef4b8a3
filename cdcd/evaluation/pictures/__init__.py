"""Evaluation of generated pictures: do they show what was asked for, and do they look real."""

from cdcd.evaluation.pictures.evaluate import evaluate_pictures

__all__ = ["evaluate_pictures"]
