module gotrace.test/leftbehind

go 1.19
