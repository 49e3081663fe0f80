module gotrace.test/collector

go 1.19
