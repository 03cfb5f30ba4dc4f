//! The example of an embedding runs.

use std::path::Path;

// Its messages are its own.
#[allow(dead_code)]
#[path = "../../examples/server.rs"]
mod example;

#[test]
fn serves_requests_of_several_threads_with_one_model() {
    // The example names its model from the repository's folder.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    example::serve(&root.join("examples/digits-cnn/model.onnx"), 200).expect("it serves");
    assert!(example::serve(&root.join("examples/none.onnx"), 1).is_err());
}
