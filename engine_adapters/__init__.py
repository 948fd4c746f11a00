"""Where the store meets its users: one subpackage an engine. The only code here that imports torch or an engine."""
