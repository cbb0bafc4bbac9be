package main

func Example() {
	main()
	// Output: hello from greeter on 10.0.0.1
}
