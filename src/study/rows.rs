//! Rows 1 to 13: on a trained network and real images, each mechanism beside the engine's own attack.

use super::batch::{Batch, Budget, Judged, Net, Run, differing, healthy, moves, own, same_bits, signs};
use super::mistakes::{self, Stop};
use super::numbers::{Numbers, Row};
use super::verdict::{self, Words};
use crate::attack::{Attack, Engine, Norm, Own, budget};
use crate::error::Result;

/// Sizes of a batch over which half precision takes its mean.
const HALF: [usize; 3] = [32, 512, 4096];

/// What gradients are multiplied by before they are rounded to half precision, where they are scaled.
const SCALE: f32 = 1024.0;

/// Runs of the rows up to this one are kept for programs that repeat them.
const REPEATED: u8 = 7;

/// What the experiments run on.
pub struct Bench<'a> {
    /// The network in evaluation mode: it runs the correct attacks, and judges all.
    pub engine: &'a dyn Engine,
    /// The same network in training mode, or why there is none.
    pub training: std::result::Result<Net<'a>, &'a str>,
    /// Images that are right when clean, as many as a power of two.
    pub images: Batch,
    /// Images of two classes in turns, each with the other class as its target.
    pub pair: Option<Batch>,
    /// Names of those two.
    pub pair_names: (String, String),
    /// Images in a minibatch, a power of two.
    pub minibatch: usize,
    /// How far, how fast, how long.
    pub budget: Budget,
    /// Seed of random starts.
    pub seed: u64,
    /// Told what runs now.
    pub tell: &'a dyn Fn(&str) -> Result<()>,
}

/// A run, and what came of it.
#[derive(Clone)]
pub struct Done {
    id: String,
    run: Run,
    numbers: Numbers,
}

/// What has been found so far.
#[derive(Default)]
pub struct Found {
    /// Lines of the table.
    pub rows: Vec<Row>,
    /// Where images ended: rows 1 to 7, for programs that repeat them.
    pub runs: Vec<(String, Run)>,
}

impl Found {
    fn push(&mut self, experiment: impl Into<String>, against: &str, done: &Done, verdict: String) {
        self.rows.push(Row {
            id: done.id.clone(),
            experiment: experiment.into(),
            against: against.into(),
            numbers: Some(done.numbers.clone()),
            verdict,
        });
        if self.rows.last().is_some_and(|row| row.number() <= REPEATED) {
            self.runs.push((done.id.clone(), done.run.clone()));
        }
    }

    fn not_run(&mut self, id: &str, experiment: &str, why: &str) {
        let (id, experiment, against) = (id.into(), experiment.into(), String::new());
        self.rows.push(Row { id, experiment, against, numbers: None, verdict: format!("Not run: {why}.") });
    }
}

impl Bench<'_> {
    /// Gradients of the engine.
    pub(super) fn gradients(&self) -> impl Fn(&[f32], &[u32]) -> Result<crate::attack::Gradient> {
        |x: &[f32], targets: &[u32]| {
            let gradient = self.engine.input_gradient(x, targets)?;
            healthy(&gradient.health)?;
            Ok(gradient)
        }
    }

    /// The engine's attack, `size` images at a time.
    pub(super) fn own(&self, batch: &Batch, size: usize) -> Result<Run> {
        own(self.engine, batch, size, &|part| self.budget.ifgsm(part))
    }

    fn judged(&self, batch: &Batch, x: &[f32]) -> Result<Judged> {
        Judged::new(self.engine, x, &batch.targets)
    }

    /// What came of a run of `batch`, beside `base`.
    fn done(&self, id: &str, batch: &Batch, run: Run, base: Option<&Done>) -> Result<Done> {
        let mut numbers = Numbers::new(&self.judged(batch, &batch.x0)?, &self.judged(batch, &run.x)?);
        if let Some(base) = base {
            numbers.same_bits = Some(same_bits(&run.x, &base.run.x));
            numbers.signs_differ = Some(differing(&moves(&run.x, &batch.x0), &moves(&base.run.x, &batch.x0)));
            if !run.first.is_empty() && !base.run.first.is_empty() {
                numbers.first_signs_differ = Some(differing(&run.first, &base.run.first));
            }
        }
        Ok(Done { id: id.into(), run, numbers })
    }

    /// Row 1, which all others are compared with: each image alone.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn alone(&self, id: &str, batch: &Batch) -> Result<Done> {
        (self.tell)(&format!("row {id}, each image alone"))?;
        let mut run = self.own(batch, 1)?;
        run.first = signs(
            &batch
                .each(1, |one| Ok(Run { x: (self.gradients())(&one.x0, &one.targets)?.gradient, ..Run::default() }))?
                .x,
        );
        self.done(id, batch, run, None)
    }

    /// The rows asked for, in their order.
    ///
    /// # Errors
    /// Those of the networks; [`crate::Error::NonFinite`].
    pub fn rows(&self, wanted: &[u8]) -> Result<Found> {
        let mut found = Found::default();
        let alone = self.alone("1", &self.images)?;
        type Experiment<'a> = fn(&Bench<'a>, &Done, &mut Found) -> Result<()>;
        let runs: [(u8, Experiment<'_>); 13] = [
            (1, Self::one_at_a_time),
            (2, Self::mean_loss),
            (3, Self::own_updates),
            (4, Self::direction),
            (5, Self::shared),
            (6, Self::two_classes),
            (7, Self::batch_norm),
            (8, Self::half_precision),
            (9, Self::momentum),
            (10, Self::unnormalised),
            (11, Self::early_stop),
            (12, Self::random_by_place),
            (13, Self::truncated),
        ];
        for (row, run) in runs {
            if wanted.contains(&row) {
                (self.tell)(&format!("row {row}"))?;
                run(self, &alone, &mut found)?;
            }
        }
        Ok(found)
    }

    /// Runs `mistake` on each minibatch, and says what came of it beside `base`.
    #[allow(clippy::too_many_arguments, reason = "a line of the table has that many cells")]
    fn mistaken(
        &self,
        found: &mut Found,
        id: &str,
        experiment: String,
        batch: &Batch,
        size: usize,
        base: &Done,
        words: &Words,
        mistake: impl FnMut(&Batch) -> Result<Run>,
    ) -> Result<Done> {
        let done = self.done(id, batch, batch.each(size, mistake)?, Some(base))?;
        let verdict = verdict::verdict(&done.numbers, &base.numbers, &row(base), words);
        found.push(experiment, &base.id, &done, verdict);
        Ok(done)
    }

    fn one_at_a_time(&self, alone: &Done, found: &mut Found) -> Result<()> {
        found.push("One image at a time", "", alone, verdict::baseline(&alone.numbers));
        Ok(())
    }

    fn mean_loss(&self, alone: &Done, found: &mut Found) -> Result<()> {
        let words = Words {
            harm: "the mean over the batch costs hits",
            harmless: "the mean over the batch changes bits, not success",
            same: "sign() does not see the 1/N, and the mean dilutes nothing",
        };
        let name = format!("Minibatches of {}, mean of the losses", self.minibatch);
        let net = self.gradients();
        let mean = |part: &Batch| mistakes::mean_loss(&net, part, &self.budget);
        self.mistaken(found, "2", name, &self.images, self.minibatch, alone, &words, mean).map(drop)
    }

    fn own_updates(&self, alone: &Done, found: &mut Found) -> Result<()> {
        let words = Words {
            harm: "a batch costs hits",
            harmless: "a batch changes bits, not success",
            same: "neighbours change nothing",
        };
        let mut run = self.own(&self.images, self.minibatch)?;
        let net = self.gradients();
        run.first = signs(&net(&self.images.x0, &self.images.targets)?.gradient);
        let done = self.done("3", &self.images, run, Some(alone))?;
        let name = format!("Minibatches of {}, each image its own update", self.minibatch);
        let said = verdict::verdict(&done.numbers, &alone.numbers, &row(alone), &words);
        found.push(name, &alone.id, &done, said);
        Ok(())
    }

    fn direction(&self, alone: &Done, found: &mut Found) -> Result<()> {
        let words = Words {
            harm: "the wrong way",
            harmless: "the wrong way, but no fewer hits",
            same: "the direction does not matter",
        };
        let net = self.gradients();
        let up = |part: &Batch| mistakes::ascent(&net, part, &self.budget);
        let name = "+α·sign on the target's loss, as in the examples".to_string();
        self.mistaken(found, "4", name, &self.images, self.minibatch, alone, &words, up).map(drop)
    }

    fn shared(&self, alone: &Done, found: &mut Found) -> Result<()> {
        let words = Words {
            harm: "here averaging does dilute, for one perturbation has to serve all",
            harmless: "one perturbation serves all",
            same: "one image, one perturbation",
        };
        let net = self.gradients();
        let shared = |part: &Batch| mistakes::shared(&net, part, &self.budget);
        for (id, size) in [("5a", self.minibatch), ("5b", self.images.len())] {
            let name = format!("One averaged gradient and one perturbation for {size} images");
            self.mistaken(found, id, name, &self.images, size, alone, &words, shared)?;
        }
        Ok(())
    }

    fn two_classes(&self, _: &Done, found: &mut Found) -> Result<()> {
        let (a, b) = &self.pair_names;
        let title = format!("{a} → {b} and {b} → {a}");
        let Some(pair) = &self.pair else {
            found.not_run("6", &title, "the images hold too few of these classes that are right when clean");
            return Ok(());
        };
        let size = self.minibatch.min(pair.len());
        let alone = self.alone("6a", pair)?;
        found.push(format!("{title}: each image alone"), "", &alone, verdict::baseline(&alone.numbers));

        let words = Words {
            harm: "opposite targets in one batch cost hits",
            harmless: "opposite targets in one batch change bits, not success",
            same: "opposite targets in one batch do not meet",
        };
        let net = self.gradients();
        let mean = |part: &Batch| mistakes::mean_loss(&net, part, &self.budget);
        let name = format!("{title}: mixed in minibatches of {size}, mean of the losses");
        self.mistaken(found, "6b", name, pair, size, &alone, &words, mean)?;

        let words = Words {
            harm: "opposite targets do meet where the perturbation is one",
            harmless: "one perturbation serves both directions",
            same: "one perturbation is each image's own",
        };
        let shared = |part: &Batch| mistakes::shared(&net, part, &self.budget);
        let name = format!("{title}: mixed, one shared perturbation for {size}");
        self.mistaken(found, "6c", name, pair, size, &alone, &words, shared)?;

        let words = Words {
            harm: "one perturbation is too few even for one direction",
            harmless: "one perturbation serves one direction",
            same: "one perturbation is each image's own",
        };
        // The images of one class, then those of the other.
        let order: Vec<usize> = (0..pair.len()).step_by(2).chain((1..pair.len()).step_by(2)).collect();
        let sorted = pair.select(&order);
        let half = (size / 2).max(1);
        let run = sorted.each(half, shared)?;
        let mut back = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, &i)| back[i] = place);
        let done = self.done("6d", pair, run.select(pair.one(), &back), Some(&alone))?;
        let said = verdict::verdict(&done.numbers, &alone.numbers, &row(&alone), &words);
        found.push(format!("{title}: each direction by itself, one shared perturbation for {half}"), "6a", &done, said);

        let name = format!("{title}: mixed in minibatches of {size}, training mode");
        match self.training {
            Err(why) => found.not_run("6e", &name, why),
            Ok(training) => {
                let words = Words {
                    harm: "batch statistics do couple the images",
                    harmless: "batch statistics change signs, not success",
                    same: "batch statistics change nothing",
                };
                let run = |part: &Batch| mistakes::summed(training, part, &self.budget);
                self.mistaken(found, "6e", name, pair, size, &alone, &words, run)?;
            }
        }
        Ok(())
    }

    fn batch_norm(&self, alone: &Done, found: &mut Found) -> Result<()> {
        let name = format!("Training mode, minibatches of {}", self.minibatch);
        let training = match self.training {
            Ok(training) => training,
            Err(why) => {
                found.not_run("7", &name, why);
                return Ok(());
            }
        };
        let words = Words {
            harm: "neighbours enter every gradient through the batch's mean and variance",
            harmless: "neighbours change signs, not success",
            same: "neighbours change nothing",
        };
        let run = |part: &Batch| mistakes::summed(training, part, &self.budget);
        let first = self.mistaken(found, "7a", name, &self.images, self.minibatch, alone, &words, run)?;

        // Every image among others.
        let order = dealt(self.images.len(), self.minibatch);
        let mixed = self.images.select(&order);
        let run = mixed.each(self.minibatch, run)?;
        let mut back = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, &i)| back[i] = place);
        let run = run.select(self.images.one(), &back);
        let changed = differing(&run.first, &first.run.first);
        let mut done = self.done("7b", &self.images, run, Some(alone))?;
        done.numbers = done.numbers.fact("changed_by_neighbours", changed);
        let said = verdict::verdict(&done.numbers, &alone.numbers, &row(alone), &words);
        found.push("The same images beside other neighbours", &alone.id, &done, said);
        Ok(())
    }

    fn half_precision(&self, alone: &Done, found: &mut Found) -> Result<()> {
        let words = Words {
            harm: "gradients are lost before sign() sees them",
            harmless: "what is lost costs no hits",
            same: "half precision loses no sign",
        };
        let net = self.gradients();
        let scaled = [(4096, SCALE)];
        for (i, (n, scale)) in HALF.map(|n| (n, 1.0)).into_iter().chain(scaled).enumerate() {
            let run = mistakes::half_precision(&net, &self.images, &self.budget, n, scale)?;
            let own = &alone.run.first;
            let lost = run.first.iter().zip(own).filter(|(half, own)| **half == 0 && **own != 0).count();
            let any = own.iter().filter(|own| **own != 0).count().max(1);
            let id = format!("8{}", (b'a' + i as u8) as char);
            let mut done = self.done(&id, &self.images, run, Some(alone))?;
            done.numbers = done.numbers.fact("underflow", lost as f64 / any as f64);
            let how = if scale == 1.0 { String::new() } else { format!(", scaled by {scale}") };
            let said = verdict::verdict(&done.numbers, &alone.numbers, &row(alone), &words);
            found.push(format!("Gradients in half precision, mean over {n}{how}"), &alone.id, &done, said);
        }
        Ok(())
    }

    fn momentum(&self, _: &Done, found: &mut Found) -> Result<()> {
        let images = &self.images;
        let run = own(self.engine, images, self.minibatch, &|part| {
            self.budget.attack(part, Attack::mifgsm(self.budget.eps).step_size(self.budget.step_size))
        })?;
        let own = self.done("9a", images, run, None)?;
        found.push("Momentum, each gradient divided by its own norm", "", &own, verdict::baseline(&own.numbers));
        let words = Words {
            harm: "images with small gradients are left behind",
            harmless: "dividing by the batch's norm changes signs, not success",
            same: "dividing by the batch's norm changes nothing",
        };
        let net = self.gradients();
        let name = format!("Momentum, divided by the norm of the whole batch of {}", self.minibatch);
        let run = |part: &Batch| mistakes::batch_momentum(&net, part, &self.budget);
        self.mistaken(found, "9b", name, images, self.minibatch, &own, &words, run).map(drop)
    }

    /// Radius and step in L2: half the way to a corner of the L∞ ball, and steps as large a part of it.
    pub fn l2(&self) -> (f32, f32) {
        let eps = self.budget.eps * (self.images.one() as f32).sqrt() / 2.0;
        (eps, eps * self.budget.step_size / self.budget.eps)
    }

    /// What a gradient is multiplied by so that the first steps of all images together are as long as steps should be.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn rate(&self) -> Result<f32> {
        let gradient = (self.gradients())(&self.images.x0, &self.images.targets)?.gradient;
        let lengths = gradient.chunks(self.images.one()).map(|g| mistakes::length(g.iter().copied()));
        let mean = lengths.sum::<f32>() / self.images.len() as f32;
        Ok(if mean > 0.0 { self.l2().1 / mean } else { 0.0 })
    }

    fn unnormalised(&self, _: &Done, found: &mut Found) -> Result<()> {
        let images = &self.images;
        let (eps, step_size) = self.l2();
        let run = own(self.engine, images, self.minibatch, &|part| self.budget.l2(part, eps, step_size))?;
        let own = self.done("10a", images, run, None)?;
        found.push("L2, each gradient divided by its own length", "", &own, verdict::baseline(&own.numbers));
        let words = Words {
            harm: "steps as long as their gradients leave images with small ones behind",
            harmless: "steps as long as their gradients do as well",
            same: "steps are the same",
        };
        let net = self.gradients();
        let budget = Budget { eps, step_size: self.rate()?, ..self.budget };
        let (net, budget) = (&net, &budget);
        let run = |n: usize| move |part: &Batch| mistakes::unnormalised(net, part, budget, n);
        let name = "L2, steps as long as their gradients, one image at a time".to_string();
        let one = self.mistaken(found, "10b", name, images, images.len(), &own, &words, run(1))?;
        let words = Words {
            harm: "where nothing takes the length away, a mean shrinks every step by the size of the batch",
            harmless: "the mean shrinks every step by the size of the batch, and what is left is enough",
            same: "the mean changes nothing",
        };
        for (id, n) in [("10c", self.minibatch), ("10d", images.len())] {
            let name = format!("The same under a mean over {n}");
            self.mistaken(found, id, name, images, images.len(), &one, &words, run(n))?;
        }
        Ok(())
    }

    fn early_stop(&self, alone: &Done, found: &mut Found) -> Result<()> {
        let images = &self.images;
        let each = |done: &mut Done| {
            let steps = done.run.steps as f64 / images.len() as f64;
            done.numbers.facts.insert("steps_an_image".into(), steps);
        };
        let words = Words {
            harm: "who has not succeeded yet is left where it is",
            harmless: "stopping early costs no hits",
            same: "nothing stops early",
        };
        let run = own(self.engine, images, self.minibatch, &|part| self.budget.ifgsm(part).early_stop(true))?;
        let mut own = self.done("11a", images, run, Some(alone))?;
        each(&mut own);
        let said = verdict::verdict(&own.numbers, &alone.numbers, &row(alone), &words);
        found.push("Early stop, each image for itself", &alone.id, &own, said);
        let net = self.gradients();
        for (id, stop, when) in [("11b", Stop::First, "one image has"), ("11c", Stop::All, "all images have")] {
            let run = images
                .each(self.minibatch, |part| mistakes::stop_together(self.engine, &net, part, &self.budget, stop))?;
            let mut done = self.done(id, images, run, Some(alone))?;
            each(&mut done);
            let said = verdict::verdict(&done.numbers, &alone.numbers, &row(alone), &words);
            let name = format!("Early stop of the whole batch of {} once {when} succeeded", self.minibatch);
            found.push(name, &alone.id, &done, said);
        }
        Ok(())
    }

    /// Random starts keyed by an image's own number, or by its place in the batch.
    fn random_by_place(&self, _: &Done, found: &mut Found) -> Result<()> {
        let images = &self.images;
        let pgd = |part: &Batch, ids: &dyn Fn(usize) -> u64| {
            let attack = Attack::pgd(Norm::Linf, self.budget.eps).step_size(self.budget.step_size).seed(self.seed);
            let own = |i| Own { id: ids(i), eps: self.budget.eps, step_size: self.budget.step_size };
            self.budget.attack(part, attack).each((0..part.len()).map(own).collect())
        };
        let by_id = |part: &Batch| pgd(part, &|i| part.ids[i]);
        let by_place = |part: &Batch| pgd(part, &|i| i as u64);
        let words = Words {
            harm: "the batch decides where an image starts",
            harmless: "an image's result depends on its place, though success as a whole does not",
            same: "an image's result does not depend on its place",
        };
        type Attacks<'a> = &'a dyn Fn(&Batch) -> Attack;
        let ways: [(&str, &str, Attacks<'_>, &str); 2] = [
            ("12a", "12b", &by_id, "numbered by the image"),
            ("12c", "12d", &by_place, "numbered by the place in the batch"),
        ];
        for (first, second, attack, how) in ways {
            let alone = self.done(first, images, own(self.engine, images, 1, attack)?, None)?;
            found.push(
                format!("Random starts {how}, one image at a time"),
                "",
                &alone,
                verdict::baseline(&alone.numbers),
            );
            let run = own(self.engine, images, self.minibatch, attack)?;
            let mut done = self.done(second, images, run, Some(&alone))?;
            let fates = |run: &Run| self.judged(images, &run.x).map(|judged| judged.hits);
            let changed = differing(&fates(&done.run)?, &fates(&alone.run)?);
            done.numbers = done.numbers.fact("fates_changed", changed);
            let said = verdict::verdict(&done.numbers, &alone.numbers, &row(&alone), &words);
            found.push(format!("The same in minibatches of {}", self.minibatch), first, &done, said);
        }
        Ok(())
    }

    fn truncated(&self, alone: &Done, found: &mut Found) -> Result<()> {
        let images = &self.images;
        let words = Words {
            harm: "8 bits take the attack back",
            harmless: "8 bits cost no hits",
            same: "every value lay on the grid",
        };
        let run = own(self.engine, images, self.minibatch, &|part| self.budget.ifgsm(part).quantise(true))?;
        let mut rounded = self.done("13a", images, run, Some(alone))?;
        let levels = budget(self.budget.eps);
        let outside = |x: &[f32]| {
            let far = |(x, x0): (&f32, &f32)| ((x - x0) * 255.0).round().abs() > levels as f32;
            x.iter().zip(&images.x0).filter(|p| far(*p)).count() as f64 / x.len() as f64
        };
        let cut = Run { x: mistakes::truncated(&alone.run.x), ..Run::default() };
        let bytes = |x: &[f32]| x.iter().map(|x| (255.0 * x).round() as u8).collect::<Vec<u8>>();
        let other = differing(&bytes(&cut.x), &bytes(&rounded.run.x));
        let mut cut = self.done("13b", images, cut, Some(alone))?;
        rounded.numbers = rounded.numbers.fact("outside", outside(&rounded.run.x));
        cut.numbers = cut.numbers.fact("outside", outside(&cut.run.x)).fact("other_bytes", other);
        for (name, done) in [("8 bits, rounded within the ball", rounded), ("8 bits, truncated", cut)] {
            let said = verdict::verdict(&done.numbers, &alone.numbers, &row(alone), &words);
            found.push(name, &alone.id, &done, said);
        }
        Ok(())
    }
}

/// Places dealt out like cards: whoever lay in one batch of `size` lies in as many as there are.
fn dealt(n: usize, size: usize) -> Vec<usize> {
    let batches = (n / size).max(1);
    (0..batches).flat_map(|first| (first..n).step_by(batches)).collect()
}

fn row(done: &Done) -> String {
    format!("row {}", done.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dealing_gives_each_place_once_and_other_neighbours() {
        let order = dealt(8, 2);
        assert_eq!(order, [0, 4, 1, 5, 2, 6, 3, 7]);
        assert_eq!(dealt(2, 2), [0, 1]);
    }
}
