"""The composition root: the whole path from a model to a results file. Users reach it through `meshemu` itself."""
