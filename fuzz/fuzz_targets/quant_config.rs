//! Settings of `quantize --config` in JSON and TOML; what can be read must survive writing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use narrowbit_quant::options::{Matcher, QuantOptions};

fuzz_target!(|text: &str| {
    let json: Option<QuantOptions> = serde_json::from_str(text).ok();
    for options in json.into_iter().chain(toml::from_str(text).ok()) {
        let shown = toml::to_string(&options).expect("settings can be written");
        toml::from_str::<QuantOptions>(&shown).expect("what was written can be read");
        let _ = Matcher::new(&options.overrides);
    }
});
