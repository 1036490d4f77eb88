//! Counts the records of each key.

use millstream::prelude::*;

pub struct Count;

#[millstream::aggregate]
impl Aggregate for Count {
    type Accumulator = u64;

    fn add(&self, count: &mut u64, _record: &Record) -> Result<()> {
        *count += 1;
        Ok(())
    }

    fn merge(&self, count: &mut u64, other: u64) -> Result<()> {
        *count += other;
        Ok(())
    }

    fn finish(&self, _key: &[u8], count: &u64) -> Result<Value> {
        Ok(count.to_string().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts() {
        let mut count = 0;
        Count.add(&mut count, &Record::of("x")).unwrap();
        Count.merge(&mut count, 2).unwrap();
        assert_eq!(Count.finish(b"k", &count).unwrap().as_str(), "3");
    }
}
