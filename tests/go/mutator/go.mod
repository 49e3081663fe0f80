module example.com/mutator

go 1.19
