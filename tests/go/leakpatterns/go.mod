module gotrace.test/leakpatterns

go 1.19
