module gotrace.test/frames

go 1.19
