"""Shipped with the package: every transport's exam, a simulated one, faulty twins, a loop in virtual time."""
