"""The command line. A command is a module with EXAMPLES, add_arguments(parser) and run(args); none imports another."""
