//! Outputs one record for each word of the value, with the word in lower case as key and value.

use millstream::prelude::*;

#[millstream::map]
pub fn words(record: &Record, out: &mut Output) -> Result<()> {
    let words = record.value_str()?.split(|c: char| !c.is_alphanumeric() && c != '\'');
    for word in words.filter(|word| !word.is_empty()) {
        let word = word.to_lowercase();
        out.emit_keyed(&word, &word);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_record_a_word() {
        let record = Record::of("To be, or not to be: don't!");
        let out = Output::collect(&record, |out| words(&record, out)).unwrap();
        let keys: Vec<_> = out.iter().map(|record| record.key_str()).collect();
        assert_eq!(keys, ["to", "be", "or", "not", "to", "be", "don't"]);
        let record = Record::of(" ... ");
        assert!(Output::collect(&record, |out| words(&record, out)).unwrap().is_empty());
    }
}
