//! WGSL as its standard has it, and not as some device runs it: a kernel's text, one statement after the other, for all
//! invocations of a workgroup side by side. Devices that are programs take invocations in turns, from one barrier to the
//! next; so whatever a missing barrier does on hardware, they do not show it. Here every word of memory remembers who was
//! there, and what a device may do as it likes is a fault:
//!
//! - a *race*: two invocations at one word, one of them writing, without a barrier between them;
//! - memory of a workgroup read before anything was written there (signstep asks wgpu not to clear it);
//! - an index beyond an array, a division by zero, a shift by more than a word has;
//! - a barrier that not all invocations of a workgroup come to;
//! - a value handed round from an invocation that does not take part.
//!
//! Arithmetic is f32, each operation rounded as IEEE 754 has it. Only what the kernels use is known; anything else panics.

use naga::valid::{Capabilities, FunctionInfo, ModuleInfo, ValidationFlags, Validator};
use naga::{
    AddressSpace, ArraySize, AtomicFunction, Barrier, BinaryOperator, Binding, Block, BuiltIn, CollectiveOperation,
    Expression, Function, GatherMode, GlobalVariable, Handle, ImageClass, Literal, LocalVariable, MathFunction, Module,
    RelationalFunction, ScalarKind, Statement, StorageFormat, SubgroupOperation, SwitchValue, Type, TypeInner,
    UnaryOperator,
};
use std::collections::BTreeMap;

/// Rounds of a loop that no kernel needs.
const MOST_ROUNDS: usize = 1 << 20;

/// Texels in a row of a texture.
const ROW: u32 = 2048;

/// A kernel's text, read.
pub struct Program {
    module: Module,
    info: ModuleInfo,
}

/// What devices differ in.
#[derive(Clone, Copy)]
pub struct Device {
    /// Invocations that hand values round.
    pub subgroup: usize,
    /// Whether `fma` is rounded once.
    pub fuses: bool,
}

/// What went wrong: the kind of fault and the variable, and the first place.
pub type Faults = BTreeMap<String, String>;

/// One value for each invocation: word `c` of invocation `l` is `words[c * lanes + l]`. A pointer is the place within its
/// variable, in words.
#[derive(Clone, Default)]
struct Value {
    words: Vec<u32>,
    base: Option<Base>,
}

#[derive(Clone, Copy)]
enum Base {
    Global(Handle<GlobalVariable>),
    Local(Handle<LocalVariable>),
}

/// Who was last at a word, each but once: an invocation's number in the dispatch and the barrier it had passed.
#[derive(Clone, Copy, Default)]
struct Visits {
    last: Option<(u32, u32)>,
    before: Option<(u32, u32)>,
    /// The workgroup of all of them, or several.
    groups: Groups,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Groups {
    #[default]
    None,
    One(u32),
    Several,
}

/// Memory that invocations share.
#[derive(Clone, Default)]
struct Shared {
    words: Vec<u32>,
    written: Vec<bool>,
    reads: Vec<Visits>,
    writes: Vec<Visits>,
    updates: Vec<Visits>,
}

#[derive(Clone, Copy, PartialEq)]
enum Visit {
    Read,
    Write,
    /// An atomic that commutes with others of its kind, and whose result nobody looks at.
    Update,
}

/// A function that is under way.
struct Frame<'p> {
    function: &'p Function,
    info: &'p FunctionInfo,
    values: Vec<Value>,
    locals: Vec<Vec<u32>>,
    result: Value,
}

/// Invocations that left the innermost loop, or its round.
struct Flow {
    broken: Vec<bool>,
    continued: Vec<bool>,
}

/// A dispatch that is under way.
struct Run<'p> {
    program: &'p Program,
    lanes: usize,
    device: Device,
    group: u32,
    groups: [u32; 3],
    place: [u32; 3],
    size: [u32; 3],
    shared: Vec<Shared>,
    private: Vec<Vec<u32>>,
    /// Barriers passed in this workgroup, of workgroup memory and of storage.
    barriers: (u32, u32),
    faults: Faults,
}

fn any(mask: &[bool]) -> bool {
    mask.iter().any(|m| *m)
}

fn both(a: &[bool], b: &[bool], f: impl Fn(bool, bool) -> bool) -> Vec<bool> {
    a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect()
}

fn minus(a: &[bool], b: &[bool]) -> Vec<bool> {
    both(a, b, |a, b| a && !b)
}

fn or(a: &[bool], b: &[bool]) -> Vec<bool> {
    both(a, b, |a, b| a || b)
}

impl Visits {
    fn note(&mut self, who: u32, barrier: u32, group: u32) {
        if self.last.is_some_and(|(last, _)| last != who) {
            self.before = self.last;
        }
        self.last = Some((who, barrier));
        self.groups = match self.groups {
            Groups::None => Groups::One(group),
            Groups::One(other) if other == group => Groups::One(group),
            _ => Groups::Several,
        };
    }

    /// Whether somebody else was there whom no barrier parts from `who`.
    fn conflicts(&self, who: u32, barrier: u32, group: u32) -> bool {
        let elsewhere = match self.groups {
            Groups::None => false,
            Groups::One(other) => other != group,
            Groups::Several => true,
        };
        elsewhere || [self.last, self.before].into_iter().flatten().any(|(other, b)| other != who && b == barrier)
    }
}

impl Shared {
    fn new(words: Vec<u32>) -> Self {
        let n = words.len();
        let none = vec![Visits::default(); n];
        Shared { words, written: vec![false; n], reads: none.clone(), writes: none.clone(), updates: none }
    }

    /// Notes a visit; whom it races with, if anybody.
    fn visit(&mut self, at: usize, what: Visit, who: u32, barrier: u32, group: u32) -> Option<&'static str> {
        let race = |visits: &Visits| visits.conflicts(who, barrier, group);
        let found = match what {
            _ if race(&self.writes[at]) => Some("a write"),
            Visit::Read | Visit::Write if race(&self.updates[at]) => Some("an atomic"),
            Visit::Write | Visit::Update if race(&self.reads[at]) => Some("a read"),
            _ => None,
        };
        let visits = match what {
            Visit::Read => &mut self.reads,
            Visit::Write => &mut self.writes,
            Visit::Update => &mut self.updates,
        };
        visits[at].note(who, barrier, group);
        found
    }
}

impl Program {
    /// # Panics
    /// Where `text` is no valid WGSL.
    pub fn new(text: &str) -> Self {
        let module = naga::front::wgsl::parse_str(text).unwrap_or_else(|e| panic!("{}", e.emit_to_string(text)));
        let info = Validator::new(ValidationFlags::all(), Capabilities::all()).validate(&module).expect("valid WGSL");
        Program { module, info }
    }

    /// Runs the kernel, on buffers in the order of their bindings: they hold afterwards what was written, and what was
    /// undefined comes out.
    pub fn run(&self, groups: [u32; 3], device: Device, buffers: &mut [Vec<u32>]) -> Faults {
        let entry = &self.module.entry_points[0];
        let lanes = entry.workgroup_size.iter().product::<u32>() as usize;
        let mut run = Run {
            program: self,
            lanes,
            device,
            group: 0,
            groups,
            place: [0; 3],
            size: entry.workgroup_size,
            shared: Vec::new(),
            private: Vec::new(),
            barriers: (0, 0),
            faults: Faults::new(),
        };
        for (_, variable) in self.module.global_variables.iter() {
            let words = variable.binding.map(|b| buffers[b.binding as usize].clone());
            run.shared.push(Shared::new(words.unwrap_or_default()));
            run.private.push(Vec::new());
        }
        for z in 0..groups[2] {
            for y in 0..groups[1] {
                for x in 0..groups[0] {
                    run.place = [x, y, z];
                    run.workgroup(&entry.function, self.info.get_entry_point(0));
                    run.group += 1;
                }
            }
        }
        for (handle, variable) in self.module.global_variables.iter() {
            if let Some(b) = variable.binding {
                buffers[b.binding as usize] = std::mem::take(&mut run.shared[handle.index()].words);
            }
        }
        run.faults
    }
}

/// For each barrier in a kernel's text: the function in which it stands, its number there, and the text without it.
/// Functions that are never called do not count.
pub fn barriers(text: &str, entry: &str) -> Vec<(String, usize, String)> {
    const CALL: &str = "Barrier();";
    let mut all: Vec<(String, usize, String)> = Vec::new();
    for (at, _) in text.match_indices(CALL) {
        let before = &text[..at];
        let name = &before[before.rfind("\nfn ").expect("a function") + 4..];
        let name = &name[..name.find('(').expect("its arguments")];
        let start = before.rfind(|c: char| !c.is_ascii_alphabetic()).map_or(0, |i| i + 1);
        let number = all.iter().filter(|(other, ..)| other == name).count();
        all.push((name.into(), number, format!("{}{}", &text[..start], &text[at + CALL.len()..])));
    }
    all.retain(|(name, ..)| name == entry || text.matches(&format!("{name}(")).count() > 1);
    all
}

/// Words and alignment of a type; a runtime-sized array has those of one element.
fn layout(module: &Module, ty: &TypeInner) -> (usize, usize) {
    match ty {
        TypeInner::Scalar(scalar) | TypeInner::Atomic(scalar) => {
            assert!(scalar.width <= 4, "words of 64 bits");
            (1, 1)
        }
        TypeInner::Vector { size, scalar } => {
            assert!(scalar.width <= 4, "words of 64 bits");
            (*size as usize, (*size as usize).next_power_of_two())
        }
        TypeInner::Array { base, size, .. } => {
            let (words, align) = layout(module, &module.types[*base].inner);
            let count = if let ArraySize::Constant(n) = size { n.get() as usize } else { 1 };
            (words.next_multiple_of(align) * count, align)
        }
        TypeInner::Struct { members, .. } => {
            let (mut end, mut most) = (0_usize, 1);
            for member in members {
                let (words, align) = layout(module, &module.types[member.ty].inner);
                end = end.next_multiple_of(align) + words;
                most = most.max(align);
            }
            (end.next_multiple_of(most), most)
        }
        other => panic!("not interpreted: {other:?}"),
    }
}

/// Where member or element `i` begins, in words; and of how many there are, where that is known.
fn step(module: &Module, ty: &TypeInner, i: usize) -> (usize, Option<usize>) {
    match ty {
        TypeInner::Vector { size, .. } => (i, Some(*size as usize)),
        TypeInner::Array { base, size, .. } => {
            let (words, align) = layout(module, &module.types[*base].inner);
            let count = if let ArraySize::Constant(n) = size { Some(n.get() as usize) } else { None };
            (words.next_multiple_of(align) * i, count)
        }
        TypeInner::Struct { members, .. } => {
            let mut end: usize = 0;
            for member in &members[..i] {
                let (words, align) = layout(module, &module.types[member.ty].inner);
                end = end.next_multiple_of(align) + words;
            }
            (end.next_multiple_of(layout(module, &module.types[members[i].ty].inner).1), Some(members.len()))
        }
        other => panic!("not interpreted: a part of {other:?}"),
    }
}

fn kind(ty: &TypeInner) -> ScalarKind {
    match ty {
        TypeInner::Scalar(s) | TypeInner::Vector { scalar: s, .. } | TypeInner::Atomic(s) => s.kind,
        other => panic!("not interpreted: arithmetic on {other:?}"),
    }
}

fn float(word: u32) -> f32 {
    f32::from_bits(word)
}

fn binary(op: BinaryOperator, kind: ScalarKind, a: u32, b: u32) -> u32 {
    use BinaryOperator as B;
    let bits = f32::to_bits;
    match (kind, op) {
        (_, B::And) => a & b,
        (_, B::InclusiveOr) => a | b,
        (_, B::ExclusiveOr) => a ^ b,
        (ScalarKind::Bool, B::LogicalAnd) => a & b,
        (ScalarKind::Bool, B::LogicalOr) => a | b,
        (ScalarKind::Float, B::Add) => bits(float(a) + float(b)),
        (ScalarKind::Float, B::Subtract) => bits(float(a) - float(b)),
        (ScalarKind::Float, B::Multiply) => bits(float(a) * float(b)),
        (ScalarKind::Float, B::Divide) => bits(float(a) / float(b)),
        (ScalarKind::Float, B::Equal) => u32::from(float(a) == float(b)),
        (ScalarKind::Float, B::NotEqual) => u32::from(float(a) != float(b)),
        (ScalarKind::Float, B::Less) => u32::from(float(a) < float(b)),
        (ScalarKind::Float, B::LessEqual) => u32::from(float(a) <= float(b)),
        (ScalarKind::Float, B::Greater) => u32::from(float(a) > float(b)),
        (ScalarKind::Float, B::GreaterEqual) => u32::from(float(a) >= float(b)),
        (_, B::Equal) => u32::from(a == b),
        (_, B::NotEqual) => u32::from(a != b),
        (_, B::Add) => a.wrapping_add(b),
        (_, B::Subtract) => a.wrapping_sub(b),
        (_, B::Multiply) => a.wrapping_mul(b),
        (_, B::ShiftLeft) => a << (b & 31),
        (ScalarKind::Uint, B::ShiftRight) => a >> (b & 31),
        (ScalarKind::Uint, B::Divide) => a.checked_div(b).unwrap_or(a),
        (ScalarKind::Uint, B::Modulo) => a.checked_rem(b).unwrap_or(0),
        (ScalarKind::Uint, B::Less) => u32::from(a < b),
        (ScalarKind::Uint, B::LessEqual) => u32::from(a <= b),
        (ScalarKind::Uint, B::Greater) => u32::from(a > b),
        (ScalarKind::Uint, B::GreaterEqual) => u32::from(a >= b),
        (ScalarKind::Sint, _) => {
            let (a, b) = (a as i32, b as i32);
            match op {
                B::ShiftRight => (a >> (b & 31)) as u32,
                B::Divide => a.checked_div(b).unwrap_or(a) as u32,
                B::Modulo => a.checked_rem(b).unwrap_or(0) as u32,
                B::Less => u32::from(a < b),
                B::LessEqual => u32::from(a <= b),
                B::Greater => u32::from(a > b),
                B::GreaterEqual => u32::from(a >= b),
                _ => panic!("not interpreted: {op:?} of i32"),
            }
        }
        _ => panic!("not interpreted: {op:?} of {kind:?}"),
    }
}

/// Functions that take a component of each argument.
fn math(fun: MathFunction, kind: ScalarKind, a: u32, b: u32, c: u32) -> u32 {
    use MathFunction as M;
    let f = |v: f32| v.to_bits();
    match (kind, fun) {
        (ScalarKind::Float, M::Abs) => f(float(a).abs()),
        (ScalarKind::Float, M::Min) => f(float(a).min(float(b))),
        (ScalarKind::Float, M::Max) => f(float(a).max(float(b))),
        (ScalarKind::Float, M::Clamp) => f(float(a).max(float(b)).min(float(c))),
        (ScalarKind::Float, M::Fma) => f(float(a).mul_add(float(b), float(c))),
        (ScalarKind::Float, M::Floor) => f(float(a).floor()),
        (ScalarKind::Float, M::Ceil) => f(float(a).ceil()),
        (ScalarKind::Float, M::Round) => f(float(a).round_ties_even()),
        (ScalarKind::Float, M::Trunc) => f(float(a).trunc()),
        (ScalarKind::Float, M::Sqrt) => f(float(a).sqrt()),
        (ScalarKind::Float, M::Exp) => f(float(a).exp()),
        (ScalarKind::Float, M::Log) => f(float(a).ln()),
        (ScalarKind::Float, M::Cos) => f(float(a).cos()),
        (ScalarKind::Float, M::Sign) => f(if float(a) == 0.0 { 0.0 } else { float(a).signum() }),
        (ScalarKind::Uint, M::Min) => a.min(b),
        (ScalarKind::Uint, M::Max) => a.max(b),
        (ScalarKind::Uint, M::Clamp) => a.max(b).min(c),
        (ScalarKind::Uint, M::Abs) => a,
        (ScalarKind::Sint, M::Min) => (a as i32).min(b as i32) as u32,
        (ScalarKind::Sint, M::Max) => (a as i32).max(b as i32) as u32,
        (ScalarKind::Sint, M::Clamp) => (a as i32).max(b as i32).min(c as i32) as u32,
        (ScalarKind::Sint, M::Abs) => (a as i32).wrapping_abs() as u32,
        (ScalarKind::Uint | ScalarKind::Sint, M::CountOneBits) => a.count_ones(),
        (ScalarKind::Uint | ScalarKind::Sint, M::CountLeadingZeros) => a.leading_zeros(),
        (ScalarKind::Uint | ScalarKind::Sint, M::CountTrailingZeros) => a.trailing_zeros(),
        _ => panic!("not interpreted: {fun:?} of {kind:?}"),
    }
}

fn converted(from: ScalarKind, to: ScalarKind, v: u32) -> u32 {
    use ScalarKind as K;
    match (from, to) {
        (_, K::Bool) if from == K::Float => u32::from(float(v) != 0.0),
        (_, K::Bool) => u32::from(v != 0),
        (K::Float, K::Uint) => float(v) as u32,
        (K::Float, K::Sint) => float(v) as i32 as u32,
        (K::Uint | K::Bool, K::Float) => (v as f32).to_bits(),
        (K::Sint, K::Float) => (v as i32 as f32).to_bits(),
        (K::Float, K::Float) | (K::Uint | K::Sint | K::Bool, K::Uint | K::Sint) => v,
        _ => panic!("not interpreted: {from:?} as {to:?}"),
    }
}

fn of_half(word: u32) -> u32 {
    half::f16::from_bits(word as u16).to_f32().to_bits()
}

fn literal(literal: Literal) -> u32 {
    match literal {
        Literal::F32(v) => v.to_bits(),
        Literal::U32(v) => v,
        Literal::I32(v) => v as u32,
        Literal::Bool(v) => u32::from(v),
        other => panic!("not interpreted: {other:?}"),
    }
}

impl<'p> Run<'p> {
    fn module(&self) -> &'p Module {
        &self.program.module
    }

    fn inner<'f>(&self, frame: &Frame<'f>, h: Handle<Expression>) -> &'f TypeInner
    where
        'p: 'f,
    {
        frame.info[h].ty.inner_with(&self.module().types)
    }

    fn fault(&mut self, what: &str, variable: &str, place: impl FnOnce() -> String) {
        let key = if variable.is_empty() { what.to_string() } else { format!("{what}: {variable}") };
        self.faults.entry(key).or_insert_with(place);
    }

    fn workgroup(&mut self, function: &'p Function, info: &'p FunctionInfo) {
        self.barriers = (0, 0);
        for (handle, variable) in self.module().global_variables.iter() {
            let words = || layout(self.module(), &self.module().types[variable.ty].inner).0;
            match variable.space {
                AddressSpace::WorkGroup => self.shared[handle.index()] = Shared::new(vec![0xdead_beef; words()]),
                AddressSpace::Private => {
                    let init = variable.init.map(|init| self.constant(init));
                    let init = init.unwrap_or_else(|| vec![0; words()]);
                    self.private[handle.index()] = init.iter().flat_map(|w| vec![*w; self.lanes]).collect();
                }
                _ => {}
            }
        }
        let arguments = function.arguments.iter().map(|argument| {
            let Some(Binding::BuiltIn(built_in)) = argument.binding else { panic!("not interpreted: {argument:?}") };
            self.built_in(built_in)
        });
        let arguments: Vec<Value> = arguments.collect();
        let mask = vec![true; self.lanes];
        self.call(function, info, &arguments, &mask);
    }

    fn built_in(&self, built_in: BuiltIn) -> Value {
        let lane = |l: usize| {
            let l = l as u32;
            [l % self.size[0], l / self.size[0] % self.size[1], l / (self.size[0] * self.size[1])]
        };
        let three = |f: &dyn Fn(usize, usize) -> u32| {
            (0..3).flat_map(|c| (0..self.lanes).map(move |l| (l, c))).map(|(l, c)| f(l, c)).collect()
        };
        let one = |f: &dyn Fn(usize) -> usize| (0..self.lanes).map(|l| f(l) as u32).collect();
        let words: Vec<u32> = match built_in {
            BuiltIn::GlobalInvocationId => three(&|l, c| self.place[c] * self.size[c] + lane(l)[c]),
            BuiltIn::LocalInvocationId => three(&|l, c| lane(l)[c]),
            BuiltIn::LocalInvocationIndex => one(&|l| l),
            BuiltIn::WorkGroupId => three(&|_, c| self.place[c]),
            BuiltIn::NumWorkGroups => three(&|_, c| self.groups[c]),
            BuiltIn::SubgroupSize => one(&|_| self.device.subgroup),
            BuiltIn::SubgroupInvocationId => one(&|l| l % self.device.subgroup),
            BuiltIn::SubgroupId => one(&|l| l / self.device.subgroup),
            other => panic!("not interpreted: {other:?}"),
        };
        Value { words, base: None }
    }

    /// The words of an expression that is the same for all.
    fn constant(&self, h: Handle<Expression>) -> Vec<u32> {
        let module = self.module();
        match &module.global_expressions[h] {
            Expression::Literal(l) => vec![literal(*l)],
            Expression::Constant(c) => self.constant(module.constants[*c].init),
            Expression::ZeroValue(ty) => vec![0; layout(module, &module.types[*ty].inner).0],
            Expression::Splat { size, value } => self.constant(*value).repeat(*size as usize),
            Expression::Compose { ty, components } => {
                let parts: Vec<Vec<u32>> = components.iter().map(|c| self.constant(*c)).collect();
                compose(module, *ty, &parts, 1)
            }
            other => panic!("not interpreted: constant {other:?}"),
        }
    }

    fn call(&mut self, function: &'p Function, info: &'p FunctionInfo, arguments: &[Value], mask: &[bool]) -> Value {
        let module = self.module();
        let lanes = self.lanes;
        let spread = |words: Vec<u32>| words.iter().flat_map(|w| vec![*w; lanes]).collect();
        let mut frame = Frame {
            function,
            info,
            values: vec![Value::default(); function.expressions.len()],
            locals: Vec::new(),
            result: Value::default(),
        };
        for (h, expression) in function.expressions.iter() {
            let value = match expression {
                Expression::Literal(l) => Value { words: vec![literal(*l); lanes], base: None },
                Expression::Constant(c) => {
                    Value { words: spread(self.constant(module.constants[*c].init)), base: None }
                }
                Expression::ZeroValue(ty) => {
                    Value { words: vec![0; lanes * layout(module, &module.types[*ty].inner).0], base: None }
                }
                Expression::FunctionArgument(i) => arguments[*i as usize].clone(),
                Expression::GlobalVariable(g) => Value { words: vec![0; lanes], base: Some(Base::Global(*g)) },
                Expression::LocalVariable(v) => Value { words: vec![0; lanes], base: Some(Base::Local(*v)) },
                _ => continue,
            };
            frame.values[h.index()] = value;
        }
        for (_, local) in function.local_variables.iter() {
            let words = layout(module, &module.types[local.ty].inner).0;
            let init = local.init.map(|init| {
                self.evaluate(&mut frame, init, mask);
                frame.values[init.index()].words.clone()
            });
            frame.locals.push(init.unwrap_or_else(|| vec![0; words * lanes]));
        }
        let mut flow = Flow { broken: vec![false; lanes], continued: vec![false; lanes] };
        self.block(&mut frame, &function.body, mask.to_vec(), &mut flow);
        frame.result
    }

    /// Runs a block for the invocations in `mask`; those come back that reach its end.
    fn block(&mut self, frame: &mut Frame<'p>, block: &'p Block, mut mask: Vec<bool>, flow: &mut Flow) -> Vec<bool> {
        for statement in block {
            if !any(&mask) {
                break;
            }
            mask = self.statement(frame, statement, mask, flow);
        }
        mask
    }

    fn statement(
        &mut self,
        frame: &mut Frame<'p>,
        statement: &'p Statement,
        mask: Vec<bool>,
        flow: &mut Flow,
    ) -> Vec<bool> {
        let lanes = self.lanes;
        match statement {
            Statement::Emit(range) => {
                for h in range.clone() {
                    self.evaluate(frame, h, &mask);
                }
            }
            Statement::Block(block) => return self.block(frame, block, mask, flow),
            Statement::If { condition, accept, reject } => {
                let yes: Vec<bool> = frame.values[condition.index()].words.iter().map(|w| *w != 0).collect();
                let no = self.block(frame, reject, minus(&mask, &yes), flow);
                let yes = self.block(frame, accept, both(&mask, &yes, |a, b| a && b), flow);
                return or(&yes, &no);
            }
            Statement::Switch { selector, cases } => {
                let selector = frame.values[selector.index()].words.clone();
                let listed = |v: u32| {
                    cases.iter().any(|c| match c.value {
                        SwitchValue::U32(x) => x == v,
                        SwitchValue::I32(x) => x as u32 == v,
                        SwitchValue::Default => false,
                    })
                };
                let mut inner = Flow { broken: vec![false; lanes], continued: vec![false; lanes] };
                let (mut falling, mut through) = (vec![false; lanes], vec![false; lanes]);
                for case in cases {
                    let here = |l: usize| match case.value {
                        SwitchValue::U32(x) => selector[l] == x,
                        SwitchValue::I32(x) => selector[l] == x as u32,
                        SwitchValue::Default => !listed(selector[l]),
                    };
                    let enter = (0..lanes).map(|l| mask[l] && here(l) || falling[l]).collect();
                    let ended = self.block(frame, &case.body, enter, &mut inner);
                    if case.fall_through {
                        falling = ended;
                    } else {
                        falling = vec![false; lanes];
                        through = or(&through, &ended);
                    }
                }
                flow.continued = or(&flow.continued, &inner.continued);
                return or(&or(&through, &inner.broken), &falling);
            }
            Statement::Loop { body, continuing, break_if } => {
                let (mut active, mut left) = (mask, vec![false; lanes]);
                let mut round = 0;
                loop {
                    round += 1;
                    if !any(&active) {
                        return left;
                    }
                    if round == MOST_ROUNDS {
                        self.fault("a loop without an end", "", || format!("{active:?}"));
                        return left;
                    }
                    let mut inner = Flow { broken: vec![false; lanes], continued: vec![false; lanes] };
                    let ended = self.block(frame, body, active, &mut inner);
                    left = or(&left, &inner.broken);
                    let next = or(&ended, &inner.continued);
                    active = self.block(frame, continuing, next, &mut inner);
                    if let Some(condition) = break_if {
                        let words = &frame.values[condition.index()].words;
                        let stop: Vec<bool> = (0..lanes).map(|l| active[l] && words[l] != 0).collect();
                        active = minus(&active, &stop);
                        left = or(&left, &stop);
                    }
                }
            }
            Statement::Break => {
                flow.broken = or(&flow.broken, &mask);
                return vec![false; lanes];
            }
            Statement::Continue => {
                flow.continued = or(&flow.continued, &mask);
                return vec![false; lanes];
            }
            Statement::Return { value } => {
                if let Some(value) = value {
                    let value = frame.values[value.index()].clone();
                    merge(&mut frame.result, value, &mask);
                }
                return vec![false; lanes];
            }
            Statement::ControlBarrier(barrier) => self.barrier(*barrier, &mask),
            Statement::Store { pointer, value } => {
                let value = frame.values[value.index()].words.clone();
                self.store(frame, *pointer, &value, &mask);
            }
            Statement::Atomic { pointer, fun, value, result } => {
                let value = frame.values[value.index()].words.clone();
                // Whether anybody looks at what was there.
                let looks = result.is_some_and(|h| frame.info[h].ref_count > 0);
                let old = self.atomic(frame, *pointer, *fun, &value, looks, &mask);
                if let Some(result) = result {
                    merge(&mut frame.values[result.index()], Value { words: old, base: None }, &mask);
                }
            }
            Statement::WorkGroupUniformLoad { pointer, result } => {
                self.barrier(Barrier::WORK_GROUP, &mask);
                let words = self.load(frame, *pointer, &mask);
                self.barrier(Barrier::WORK_GROUP, &mask);
                merge(&mut frame.values[result.index()], Value { words, base: None }, &mask);
            }
            Statement::Call { function, arguments, result } => {
                let arguments: Vec<Value> = arguments.iter().map(|a| frame.values[a.index()].clone()).collect();
                assert!(arguments.iter().all(|a| a.base.is_none()), "not interpreted: pointers handed on");
                let program = self.program;
                let value =
                    self.call(&program.module.functions[*function], &program.info[*function], &arguments, &mask);
                if let Some(result) = result {
                    merge(&mut frame.values[result.index()], value, &mask);
                }
            }
            Statement::SubgroupGather { mode, argument, result } => {
                let from = self.sources(frame, *mode, &mask);
                let given = &frame.values[argument.index()].words;
                let words = (0..given.len()).map(|i| given[i / lanes * lanes + from[i % lanes]]).collect();
                merge(&mut frame.values[result.index()], Value { words, base: None }, &mask);
            }
            Statement::SubgroupCollectiveOperation { op, collective_op, argument, result } => {
                assert_eq!(*collective_op, CollectiveOperation::Reduce, "not interpreted");
                let kind = kind(self.inner(frame, *argument));
                let given = &frame.values[argument.index()].words;
                let folded = |i: usize| {
                    let (c, l) = (i / lanes, i % lanes);
                    let first = l - l % self.device.subgroup;
                    let taking = (first..lanes.min(first + self.device.subgroup)).filter(|l| mask[*l]);
                    let f = |a, b| match op {
                        SubgroupOperation::Add => binary(BinaryOperator::Add, kind, a, b),
                        SubgroupOperation::Or | SubgroupOperation::Any => a | b,
                        SubgroupOperation::And | SubgroupOperation::All => a & b,
                        SubgroupOperation::Max => math(MathFunction::Max, kind, a, b, 0),
                        SubgroupOperation::Min => math(MathFunction::Min, kind, a, b, 0),
                        other => panic!("not interpreted: {other:?}"),
                    };
                    taking.map(|l| given[c * lanes + l]).reduce(f).unwrap_or(0)
                };
                let words = (0..given.len()).map(folded).collect();
                merge(&mut frame.values[result.index()], Value { words, base: None }, &mask);
            }
            other => panic!("not interpreted: {other:?}"),
        }
        mask
    }

    fn barrier(&mut self, barrier: Barrier, mask: &[bool]) {
        if barrier == Barrier::SUB_GROUP {
            return;
        }
        if mask.iter().any(|m| !m) {
            let here = mask.iter().filter(|m| **m).count();
            let lanes = self.lanes;
            self.fault("a barrier that not all come to", "", || format!("{here} of {lanes}"));
        }
        self.barriers.0 += u32::from(barrier.contains(Barrier::WORK_GROUP));
        self.barriers.1 += u32::from(barrier.contains(Barrier::STORAGE));
    }

    /// From which invocation each gets its value.
    fn sources(&mut self, frame: &Frame<'p>, mode: GatherMode, mask: &[bool]) -> Vec<usize> {
        let (lanes, size) = (self.lanes, self.device.subgroup);
        let given = |h: Handle<Expression>, l: usize| frame.values[h.index()].words[l] as usize;
        let mut from = Vec::with_capacity(lanes);
        for l in 0..lanes {
            let (first, own) = (l - l % size, l % size);
            let lane = match mode {
                GatherMode::BroadcastFirst => (0..size).find(|i| mask.get(first + i) == Some(&true)).unwrap_or(own),
                GatherMode::Broadcast(h) | GatherMode::Shuffle(h) => given(h, l),
                GatherMode::ShuffleDown(h) => own + given(h, l),
                GatherMode::ShuffleUp(h) => own.wrapping_sub(given(h, l)),
                GatherMode::ShuffleXor(h) => own ^ given(h, l),
                other => panic!("not interpreted: {other:?}"),
            };
            let there = lane < size && mask.get(first.wrapping_add(lane)) == Some(&true);
            if mask[l] && !there {
                self.fault("a value from who does not take part", "", || format!("lane {lane}, asked for by {l}"));
            }
            from.push(if there { first + lane } else { l });
        }
        from
    }

    fn name(&self, base: Base) -> String {
        match base {
            Base::Global(g) => self.module().global_variables[g].name.clone().unwrap_or_default(),
            Base::Local(_) => "a local variable".into(),
        }
    }

    /// One access: notes it, and gives where the word lies.
    fn touch(&mut self, base: Base, at: usize, lane: usize, what: Visit) -> Option<usize> {
        let Base::Global(g) = base else { return Some(at * self.lanes + lane) };
        let space = self.module().global_variables[g].space;
        let who = self.group * self.lanes as u32 + lane as u32;
        let barrier = match space {
            AddressSpace::Private => return Some(at * self.lanes + lane),
            AddressSpace::WorkGroup => self.barriers.0,
            _ => self.barriers.1,
        };
        let (group, length) = (self.group, self.shared[g.index()].words.len());
        if at >= length {
            let name = self.name(base);
            self.fault("beyond a binding", &name, || format!("word {at} of {length}, invocation {lane}"));
            return None;
        }
        let shared = &mut self.shared[g.index()];
        let race = shared.visit(at, what, who, barrier, group);
        let unwritten = space == AddressSpace::WorkGroup && what != Visit::Write && !shared.written[at];
        shared.written[at] |= what != Visit::Read;
        let name = self.name(base);
        let does = ["a read", "a write", "an atomic"][what as usize];
        if let Some(other) = race {
            self.fault(&format!("{does} races with {other}"), &name, || {
                format!("word {at}, invocation {lane} of group {group}")
            });
        }
        if unwritten {
            self.fault("read before it was written", &name, || {
                format!("word {at}, invocation {lane} of group {group}")
            });
        }
        Some(at)
    }

    /// Words that a pointer leads to.
    fn target(&self, frame: &Frame<'p>, pointer: Handle<Expression>) -> usize {
        let module = self.module();
        match self.inner(frame, pointer) {
            TypeInner::Pointer { base, .. } => layout(module, &module.types[*base].inner).0,
            TypeInner::ValuePointer { size, .. } => size.map_or(1, |s| s as usize),
            other => panic!("not interpreted: access to {other:?}"),
        }
    }

    fn load(&mut self, frame: &Frame<'p>, pointer: Handle<Expression>, mask: &[bool]) -> Vec<u32> {
        let size = self.target(frame, pointer);
        let Value { words: at, base } = &frame.values[pointer.index()];
        let base = base.expect("a pointer");
        let lanes = self.lanes;
        let mut words = vec![0; size * lanes];
        for c in 0..size {
            for l in (0..lanes).filter(|l| mask[*l]) {
                let Some(place) = self.touch(base, at[l] as usize + c, l, Visit::Read) else { continue };
                words[c * lanes + l] = match base {
                    Base::Local(v) => frame.locals[v.index()][place],
                    Base::Global(g) if self.module().global_variables[g].space == AddressSpace::Private => {
                        self.private[g.index()][place]
                    }
                    Base::Global(g) => self.shared[g.index()].words[place],
                };
            }
        }
        words
    }

    /// Texels of a texture that is only read, four f32 or four f16 each, in rows of [`ROW`].
    fn texels(&mut self, image: Base, at: &[u32], mask: &[bool]) -> Vec<u32> {
        let Base::Global(g) = image else { panic!("a texture of one's own") };
        let module = self.module();
        let half = match module.types[module.global_variables[g].ty].inner {
            TypeInner::Image { class: ImageClass::Storage { format: StorageFormat::Rgba32Float, .. }, .. } => false,
            TypeInner::Image { class: ImageClass::Storage { format: StorageFormat::Rgba16Float, .. }, .. } => true,
            ref other => panic!("not interpreted: texels of {other:?}"),
        };
        let (lanes, each) = (self.lanes, if half { 2 } else { 4 });
        let mut words = vec![0; 4 * lanes];
        for l in (0..lanes).filter(|l| mask[*l]) {
            let texel = at[lanes + l] as usize * ROW as usize + at[l] as usize;
            for c in 0..each {
                let Some(place) = self.touch(image, texel * each + c, l, Visit::Read) else { continue };
                let word = self.shared[g.index()].words[place];
                if half {
                    words[2 * c * lanes + l] = of_half(word);
                    words[(2 * c + 1) * lanes + l] = of_half(word >> 16);
                } else {
                    words[c * lanes + l] = word;
                }
            }
        }
        words
    }

    fn store(&mut self, frame: &mut Frame<'p>, pointer: Handle<Expression>, words: &[u32], mask: &[bool]) {
        let size = self.target(frame, pointer);
        let Value { words: at, base } = frame.values[pointer.index()].clone();
        let base = base.expect("a pointer");
        let lanes = self.lanes;
        for c in 0..size {
            for l in (0..lanes).filter(|l| mask[*l]) {
                let Some(place) = self.touch(base, at[l] as usize + c, l, Visit::Write) else { continue };
                let word = words[c * lanes + l];
                match base {
                    Base::Local(v) => frame.locals[v.index()][place] = word,
                    Base::Global(g) if self.module().global_variables[g].space == AddressSpace::Private => {
                        self.private[g.index()][place] = word;
                    }
                    Base::Global(g) => self.shared[g.index()].words[place] = word,
                }
            }
        }
    }

    fn atomic(
        &mut self,
        frame: &Frame<'p>,
        pointer: Handle<Expression>,
        fun: AtomicFunction,
        words: &[u32],
        looks: bool,
        mask: &[bool],
    ) -> Vec<u32> {
        let Value { words: at, base } = &frame.values[pointer.index()];
        let Some(base @ Base::Global(g)) = *base else { panic!("not interpreted: an atomic of one's own") };
        let TypeInner::Pointer { base: ty, .. } = self.inner(frame, pointer) else { panic!("no pointer") };
        let kind = kind(&self.module().types[*ty].inner);
        let mut old = vec![0; self.lanes];
        for l in (0..self.lanes).filter(|l| mask[*l]) {
            // Who looks at what was there depends on the order, as who reads and writes does.
            let what = if looks { Visit::Read } else { Visit::Update };
            let Some(place) = self.touch(base, at[l] as usize, l, what) else { continue };
            if looks {
                self.touch(base, at[l] as usize, l, Visit::Write);
            }
            let word = &mut self.shared[g.index()].words[place];
            old[l] = *word;
            *word = match fun {
                AtomicFunction::Add => word.wrapping_add(words[l]),
                AtomicFunction::Subtract => word.wrapping_sub(words[l]),
                AtomicFunction::And => *word & words[l],
                AtomicFunction::InclusiveOr => *word | words[l],
                AtomicFunction::ExclusiveOr => *word ^ words[l],
                AtomicFunction::Min => math(MathFunction::Min, kind, *word, words[l], 0),
                AtomicFunction::Max => math(MathFunction::Max, kind, *word, words[l], 0),
                AtomicFunction::Exchange { compare: None } => words[l],
                AtomicFunction::Exchange { .. } => panic!("not interpreted: compare and exchange"),
            };
        }
        old
    }

    fn evaluate(&mut self, frame: &mut Frame<'p>, h: Handle<Expression>, mask: &[bool]) {
        let module = self.module();
        let lanes = self.lanes;
        let expression = &frame.function.expressions[h];
        let words_of = |h: &Handle<Expression>| &frame.values[h.index()].words;
        let mut base = None;
        let mut found: Option<&str> = None;
        let words = match expression {
            // Known when the function was called.
            e if e.needs_pre_emit() => return,
            Expression::Load { pointer } => self.load(frame, *pointer, mask),
            Expression::Splat { size, value } => words_of(value).repeat(*size as usize),
            Expression::Swizzle { size, vector, pattern } => {
                let from = words_of(vector);
                let part = |c: usize| from[pattern[c] as usize * lanes..][..lanes].to_vec();
                (0..*size as usize).flat_map(part).collect()
            }
            Expression::Compose { ty, components } => {
                let parts: Vec<Vec<u32>> = components.iter().map(|c| words_of(c).clone()).collect();
                compose(module, *ty, &parts, lanes)
            }
            Expression::AccessIndex { base: from, index } => {
                let from = frame.values[from.index()].clone();
                let index = vec![*index; lanes];
                base = from.base;
                self.access(frame, h, &from, &index, mask)
            }
            Expression::Access { base: from, index } => {
                let from = frame.values[from.index()].clone();
                let index = words_of(index).clone();
                base = from.base;
                self.access(frame, h, &from, &index, mask)
            }
            Expression::Unary { op, expr } => {
                let kind = kind(self.inner(frame, *expr));
                let f = |v: u32| match (op, kind) {
                    (UnaryOperator::Negate, ScalarKind::Float) => v ^ 0x8000_0000,
                    (UnaryOperator::Negate, _) => v.wrapping_neg(),
                    (UnaryOperator::LogicalNot, _) => u32::from(v == 0),
                    (UnaryOperator::BitwiseNot, _) => !v,
                };
                words_of(expr).iter().map(|v| f(*v)).collect()
            }
            Expression::Binary { op, left, right } => {
                let kind = kind(self.inner(frame, *left));
                let (a, b) = (words_of(left), words_of(right));
                let (n, m) = (a.len(), b.len());
                let whole = matches!(kind, ScalarKind::Uint | ScalarKind::Sint);
                let asks = |i: usize| mask[i % lanes];
                found = match op {
                    BinaryOperator::Divide | BinaryOperator::Modulo if whole => {
                        (0..m).any(|i| asks(i) && b[i] == 0).then_some("a division by zero")
                    }
                    BinaryOperator::ShiftLeft | BinaryOperator::ShiftRight => {
                        (0..m).any(|i| asks(i) && b[i] > 31).then_some("a shift by more than a word has")
                    }
                    _ => None,
                };
                (0..n.max(m)).map(|i| binary(*op, kind, a[i % n], b[i % m])).collect()
            }
            Expression::Select { condition, accept, reject } => {
                let (c, a, r) = (words_of(condition), words_of(accept), words_of(reject));
                (0..a.len()).map(|i| if c[i % c.len()] != 0 { a[i] } else { r[i] }).collect()
            }
            Expression::Relational { fun, argument } => {
                let given = words_of(argument);
                let of = |l: usize| given.iter().skip(l).step_by(lanes);
                match fun {
                    RelationalFunction::All => (0..lanes).map(|l| u32::from(of(l).all(|v| *v != 0))).collect(),
                    RelationalFunction::Any => (0..lanes).map(|l| u32::from(of(l).any(|v| *v != 0))).collect(),
                    RelationalFunction::IsNan => given.iter().map(|v| u32::from(float(*v).is_nan())).collect(),
                    RelationalFunction::IsInf => given.iter().map(|v| u32::from(float(*v).is_infinite())).collect(),
                }
            }
            Expression::Math { fun, arg, arg1, arg2, .. } => {
                let kind = kind(self.inner(frame, *arg));
                let a = words_of(arg);
                let none = vec![0; lanes];
                let b = arg1.as_ref().map_or(&none, words_of);
                let c = arg2.as_ref().map_or(&none, words_of);
                match fun {
                    MathFunction::Unpack2x16float => {
                        a.iter().map(|w| of_half(*w)).chain(a.iter().map(|w| of_half(*w >> 16))).collect()
                    }
                    MathFunction::Dot => {
                        let term = |i: usize| float(a[i]) * float(b[i]);
                        let sum = |l: usize| (l..a.len()).step_by(lanes).map(term).sum::<f32>().to_bits();
                        (0..lanes).map(sum).collect()
                    }
                    MathFunction::Fma if !self.device.fuses => {
                        (0..a.len()).map(|i| (float(a[i]) * float(b[i]) + float(c[i])).to_bits()).collect()
                    }
                    _ => (0..a.len()).map(|i| math(*fun, kind, a[i], b[i % b.len()], c[i % c.len()])).collect(),
                }
            }
            Expression::As { expr, kind: to, convert } => {
                let from = kind(self.inner(frame, *expr));
                let given = words_of(expr);
                match convert {
                    Some(4 | 1) => given.iter().map(|v| converted(from, *to, *v)).collect(),
                    None => given.clone(),
                    other => panic!("not interpreted: {from:?} as {to:?} of {other:?} bytes"),
                }
            }
            Expression::ImageLoad { image, coordinate, .. } => {
                let (image, at) = (frame.values[image.index()].base, words_of(coordinate).clone());
                self.texels(image.expect("a texture"), &at, mask)
            }
            Expression::ArrayLength(pointer) => {
                let Value { words: at, base } = &frame.values[pointer.index()];
                let Some(Base::Global(g)) = base else { panic!("a length of one's own") };
                let TypeInner::Pointer { base: ty, .. } = self.inner(frame, *pointer) else { panic!("no pointer") };
                let stride = step(module, &module.types[*ty].inner, 1).0;
                let length = (self.shared[g.index()].words.len() - at[0] as usize) / stride;
                vec![length as u32; lanes]
            }
            other => panic!("not interpreted: {other:?}"),
        };
        merge(&mut frame.values[h.index()], Value { words, base }, mask);
        if let Some(what) = found {
            self.fault(what, "", || format!("{expression:?}"));
        }
    }

    /// A part of a value, or where a part lies.
    fn access(
        &mut self,
        frame: &Frame<'p>,
        h: Handle<Expression>,
        from: &Value,
        index: &[u32],
        mask: &[bool],
    ) -> Vec<u32> {
        let module = self.module();
        let lanes = self.lanes;
        let base = match &frame.function.expressions[h] {
            Expression::Access { base, .. } | Expression::AccessIndex { base, .. } => *base,
            _ => unreachable!("an access"),
        };
        let vector;
        let (ty, is_pointer) = match self.inner(frame, base) {
            TypeInner::Pointer { base, .. } => (&module.types[*base].inner, true),
            TypeInner::ValuePointer { size: Some(size), scalar, .. } => {
                vector = TypeInner::Vector { size: *size, scalar: *scalar };
                (&vector, true)
            }
            other => (other, false),
        };
        let is_struct = matches!(ty, TypeInner::Struct { .. });
        let count = step(module, ty, 0).1;
        let stride = if is_struct { 0 } else { step(module, ty, 1).0 };
        let mut at = vec![0; lanes];
        for l in (0..lanes).filter(|l| mask[*l]) {
            let mut i = index[l] as usize;
            if let Some(count) = count.filter(|count| i >= *count) {
                let name = from.base.map_or_else(|| "a value".into(), |base| self.name(base));
                self.fault("beyond an array", &name, || format!("{i} of {count}, invocation {l}"));
                i = count - 1;
            }
            // What no word can hold is beyond everything.
            at[l] = if is_struct { step(module, ty, i).0 } else { (stride * i).min(u32::MAX as usize) };
        }
        if is_pointer {
            return (0..lanes).map(|l| from.words[l].saturating_add(at[l] as u32)).collect();
        }
        let size = match ty {
            TypeInner::Vector { .. } => 1,
            TypeInner::Array { base, .. } => layout(module, &module.types[*base].inner).0,
            TypeInner::Struct { members, .. } => layout(module, &module.types[members[index[0] as usize].ty].inner).0,
            other => panic!("not interpreted: a part of {other:?}"),
        };
        (0..size)
            .flat_map(|c| (0..lanes).map(move |l| (c, l)))
            .map(|(c, l)| from.words[(at[l] + c) * lanes + l])
            .collect()
    }
}

/// Takes over the values of the invocations in `mask`.
fn merge(into: &mut Value, value: Value, mask: &[bool]) {
    let lanes = mask.len();
    if into.words.len() != value.words.len() || mask.iter().all(|m| *m) {
        *into = value;
        return;
    }
    into.base = value.base;
    for (i, word) in value.words.into_iter().enumerate() {
        if mask[i % lanes] {
            into.words[i] = word;
        }
    }
}

/// A vector, array or structure of its parts.
fn compose(module: &Module, ty: Handle<Type>, parts: &[Vec<u32>], lanes: usize) -> Vec<u32> {
    let ty = &module.types[ty].inner;
    if let TypeInner::Vector { .. } = ty {
        return parts.concat();
    }
    let mut words = vec![0; layout(module, ty).0 * lanes];
    for (i, part) in parts.iter().enumerate() {
        let at = step(module, ty, i).0 * lanes;
        words[at..at + part.len()].copy_from_slice(part);
    }
    words
}
