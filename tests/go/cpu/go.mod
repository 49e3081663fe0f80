module gotrace.test/cpu

go 1.19
