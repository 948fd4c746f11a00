"""Shipped with the package: exams, pure models, faulty twins, a virtual clock and loop."""
