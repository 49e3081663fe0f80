module gotrace.test/calls

go 1.19
