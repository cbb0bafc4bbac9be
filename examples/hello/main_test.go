package main

func Example() {
	main()
	// Output: hello from greeter, instance 2
}
