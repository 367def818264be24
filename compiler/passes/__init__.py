"""The passes: functions from program to program."""
