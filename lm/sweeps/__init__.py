"""Hyper-parameter search: spaces, studies and their report."""
