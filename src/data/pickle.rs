//! Pickles as data. A pickle is a program for a stack machine that can call anything Python can import; this machine
//! knows only the opcodes and the names that `torch.save` needs for tensors in dictionaries, and calls nothing: a call
//! becomes a [`Value`] that says what would be called. Anything else is refused with its offset.
//!
//! Bounded: [`MAX_VALUES`] values, whatever the pickle says; text is borrowed from its bytes; values refer to each
//! other by index, so that nothing here or in what reads them needs recursion.

use safetensors::tensor::Dtype;

/// Most values that a pickle may push, those that it fetches again included. A network of 4,096 tensors with its
/// optimiser takes a third of them.
const MAX_VALUES: usize = 1 << 20;
/// Most marks that may be open at once: what a pickle of tensors nests is ten deep.
const MAX_MARKS: usize = 256;
/// Longest name of a module or of what is in it.
const MAX_NAME: usize = 256;

/// Why a pickle is refused.
type Result<T> = std::result::Result<T, String>;

/// Index of a value.
pub(super) type Id = u32;

/// What a pickle holds. Containers hold indices, which may go round in circles.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// A whole number of more than 64 bits, little-endian, or bytes.
    Bytes(&'a [u8]),
    Text(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    /// What would be called, and the tuple of its arguments.
    Call(Global, Id),
    Storage(Storage<'a>),
}

/// Where values of tensors lie; several tensors may share one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Storage<'a> {
    pub key: &'a str,
    pub dtype: Dtype,
    /// How many values.
    pub len: u64,
}

/// The names that may be imported, all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    /// (what makes an entry that is not there)
    DefaultDict,
    /// (storage, offset, shape, stride, …)
    Tensor,
    /// (tensor, …)
    Parameter,
    /// (tuple of sides)
    Size,
    /// A class of storages.
    Storage(Dtype),
    /// What stands beside tensors in checkpoints: arguments of the program, paths, counts of a schedule, numbers and
    /// arrays of NumPy. Kept as calls that nobody looks at.
    Other,
}

impl Global {
    fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Global::Tensor,
            ("torch._utils", "_rebuild_parameter") => Global::Parameter,
            ("torch", "Size") => Global::Size,
            ("torch", "FloatStorage") => Global::Storage(Dtype::F32),
            ("torch", "DoubleStorage") => Global::Storage(Dtype::F64),
            ("torch", "HalfStorage") => Global::Storage(Dtype::F16),
            ("torch", "BFloat16Storage") => Global::Storage(Dtype::BF16),
            ("torch", "LongStorage") => Global::Storage(Dtype::I64),
            ("torch", "IntStorage") => Global::Storage(Dtype::I32),
            ("torch", "ShortStorage") => Global::Storage(Dtype::I16),
            ("torch", "CharStorage") => Global::Storage(Dtype::I8),
            ("torch", "ByteStorage") => Global::Storage(Dtype::U8),
            ("torch", "BoolStorage") => Global::Storage(Dtype::BOOL),
            ("collections", "defaultdict") => Global::DefaultDict,
            ("torch", "device" | "float32" | "float64" | "float16" | "bfloat16" | "int64" | "uint8")
            | ("numpy", "dtype" | "ndarray")
            | ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar" | "_reconstruct")
            | ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer")
            | ("_codecs", "encode")
            | ("argparse", "Namespace")
            | ("types", "SimpleNamespace")
            | ("collections", "Counter")
            | ("datetime", "datetime" | "date" | "timedelta")
            | ("pathlib" | "pathlib._local", "PosixPath" | "PurePosixPath" | "WindowsPath" | "PureWindowsPath")
            | (
                "builtins" | "__builtin__",
                "set" | "frozenset" | "bytearray" | "complex" | "list" | "dict" | "int" | "float" | "str" | "bool",
            ) => Global::Other,
            _ => return None,
        })
    }
}

/// A pickle that was read to its end.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: Id,
    /// Bytes that it took.
    pub length: usize,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle that `bytes` begin with.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self> {
        let mut machine = Machine { bytes, ..Machine::default() };
        loop {
            let at = machine.at;
            match machine.step() {
                Ok(None) => {}
                Ok(Some(root)) => return Ok(Pickle { values: machine.values, root, length: machine.at }),
                Err(why) => return Err(format!("offset {at}: {why}")),
            }
        }
    }

    /// What the pickle is of.
    pub(super) fn root(&self) -> &Value<'a> {
        self.get(self.root)
    }

    pub(super) fn get(&self, id: Id) -> &Value<'a> {
        &self.values[id as usize]
    }

    /// Every value, whether anything refers to it or not.
    pub(super) fn values(&self) -> &[Value<'a>] {
        &self.values
    }

    /// The entry of a dictionary with this key, the first one.
    pub(super) fn entry(&self, dict: &[(Id, Id)], key: &str) -> Option<&Value<'a>> {
        dict.iter().find(|(k, _)| *self.get(*k) == Value::Text(key)).map(|(_, value)| self.get(*value))
    }
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    /// Values pushed so far.
    pushed: usize,
    stack: Vec<Id>,
    /// Heights of the stack where marks lie.
    marks: Vec<usize>,
    memo: Vec<Option<Id>>,
}

impl<'a> Machine<'a> {
    /// One opcode; the value that is left where it was the last one.
    fn step(&mut self) -> Result<Option<Id>> {
        let start = self.at;
        let opcode = self.byte()?;
        match (start, opcode) {
            (0, 0x80) => match self.byte()? {
                2..=5 => return Ok(None),
                other => return Err(format!("protocol {other}; 2 to 5 are read")),
            },
            (0, _) => return Err("this is no pickle of protocol 2 or later".into()),
            _ => {}
        }
        match opcode {
            // Frames say how much may be read ahead; here everything is in memory.
            0x95 => {
                let length = self.u64()?;
                if length > (self.bytes.len() - self.at) as u64 {
                    return Err(format!("a frame of {length} bytes runs beyond the end"));
                }
            }
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'K' => {
                let value = self.byte()?;
                self.push(Value::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()))?;
            }
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()))?;
            }
            0x8a => {
                let length = self.byte()?;
                let bytes = self.take(length.into())?;
                self.push(integer(bytes))?;
            }
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(value))?;
            }
            // Text of Python 3; then text of Python 2, which did not say what its bytes are.
            0x8c | b'U' => {
                let length = self.byte()?;
                self.text(length.into())?;
            }
            b'X' | b'T' => {
                let length = self.u32()?;
                self.text(length as usize)?;
            }
            b'C' => {
                let length = self.byte()?;
                let bytes = self.take(length.into())?;
                self.push(Value::Bytes(bytes))?;
            }
            b'B' => {
                let length = self.u32()?;
                let bytes = self.take(length as usize)?;
                self.push(Value::Bytes(bytes))?;
            }
            0x8e | 0x96 => {
                let length = self.u64()?;
                let bytes = self.take(usize::try_from(length).unwrap_or(usize::MAX))?;
                self.push(Value::Bytes(bytes))?;
            }
            b'}' => self.push(Value::Dict(Vec::new()))?,
            // Sets count as lists and tuples: nobody looks into them.
            b']' | 0x8f => self.push(Value::List(Vec::new()))?,
            b')' => self.push(Value::Tuple(Vec::new()))?,
            b'(' => {
                if self.marks.len() == MAX_MARKS {
                    return Err(format!("nested more than {MAX_MARKS} deep"));
                }
                self.marks.push(self.stack.len());
            }
            b't' | 0x91 => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items))?;
            }
            0x85..=0x87 => {
                let n = usize::from(opcode - 0x84);
                if self.stack.len() < self.floor() + n {
                    return Err("nothing is on the stack".into());
                }
                let items = self.stack.split_off(self.stack.len() - n);
                self.push(Value::Tuple(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.list()?.push(item);
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.list()?.extend(items);
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.dict()?.push((key, value));
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                let (pairs, []) = items.as_chunks::<2>() else { return Err("a key without a value".into()) };
                self.dict()?.extend(pairs.iter().map(|[key, value]| (*key, *value)));
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (&self.values[module as usize], &self.values[name as usize]) {
                    (&Value::Text(module), &Value::Text(name)) => self.global(module, name)?,
                    _ => return Err("a global whose name is no text".into()),
                }
            }
            b'R' | 0x81 => self.reduce()?,
            // Attributes, such as the `_metadata` of a state dict: nothing that tensors need.
            b'b' => {
                self.pop()?;
                match self.top()? {
                    Value::Dict(_) | Value::Call(..) => {}
                    _ => return Err("BUILD on what has no attributes".into()),
                }
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(Value::Storage(storage))?;
            }
            b'q' => {
                let i = self.byte()?;
                self.keep(i.into())?;
            }
            b'r' => {
                let i = self.u32()?;
                self.keep(i as usize)?;
            }
            0x94 => self.keep(self.memo.len())?,
            b'h' => {
                let i = self.byte()?;
                self.fetch(i.into())?;
            }
            b'j' => {
                let i = self.u32()?;
                self.fetch(i as usize)?;
            }
            b'.' => {
                return match (&self.stack[..], &self.marks[..]) {
                    ([root], []) => Ok(Some(*root)),
                    _ => Err("ends with other than one value".into()),
                };
            }
            other => return Err(format!("opcode {} is not allowed in a file of tensors", name_of(other))),
        }
        Ok(None)
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let taken =
            rest.get(..n).ok_or_else(|| format!("truncated: {n} bytes are asked for, {} are left", rest.len()))?;
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().take(MAX_NAME + 1).position(|b| *b == b'\n');
        let end = end.ok_or_else(|| format!("a name that does not end within {MAX_NAME} bytes"))?;
        let line = self.take(end + 1)?;
        utf8(&line[..end])
    }

    fn text(&mut self, n: usize) -> Result<()> {
        let text = utf8(self.take(n)?)?;
        self.push(Value::Text(text))
    }

    fn count(&mut self) -> Result<()> {
        self.pushed += 1;
        if self.pushed > MAX_VALUES { Err(format!("more than {MAX_VALUES} values")) } else { Ok(()) }
    }

    fn push(&mut self, value: Value<'a>) -> Result<()> {
        self.count()?;
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
        Ok(())
    }

    /// Height of the stack below which nothing may be taken before the mark is.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id> {
        match self.stack.pop() {
            Some(id) if self.stack.len() >= self.floor() => Ok(id),
            _ => Err("nothing is on the stack".into()),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or("no mark is on the stack")?;
        Ok(self.stack.split_off(mark))
    }

    fn top_id(&self) -> Result<Id> {
        match self.stack.last() {
            Some(id) if self.stack.len() > self.floor() => Ok(*id),
            _ => Err("nothing is on the stack".into()),
        }
    }

    fn top(&mut self) -> Result<&mut Value<'a>> {
        let id = self.top_id()?;
        Ok(&mut self.values[id as usize])
    }

    fn list(&mut self) -> Result<&mut Vec<Id>> {
        match self.top()? {
            Value::List(items) => Ok(items),
            _ => Err("items for what is no list".into()),
        }
    }

    fn dict(&mut self) -> Result<&mut Vec<(Id, Id)>> {
        match self.top()? {
            Value::Dict(pairs) => Ok(pairs),
            _ => Err("items for what is no dictionary".into()),
        }
    }

    fn keep(&mut self, i: usize) -> Result<()> {
        let id = self.top_id()?;
        // Picklers number what they keep as they go.
        if i >= MAX_VALUES {
            return Err(format!("place {i} of the memo; at most {MAX_VALUES} are read"));
        }
        if i >= self.memo.len() {
            self.memo.resize(i + 1, None);
        }
        self.memo[i] = Some(id);
        Ok(())
    }

    fn fetch(&mut self, i: usize) -> Result<()> {
        let id = self.memo.get(i).copied().flatten().ok_or_else(|| format!("place {i} of the memo is empty"))?;
        self.count()?;
        self.stack.push(id);
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        let global = Global::find(module, name).ok_or_else(|| {
            format!(
                "global `{}.{}` is not allowed: only dictionaries of tensors are read, and nothing is executed; \
                 torch.save(net.state_dict(), …) writes them, or, of what torch.load gives, the entry that holds them",
                shown(module),
                shown(name)
            )
        })?;
        self.push(Value::Global(global))
    }

    fn reduce(&mut self) -> Result<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Value::Tuple(items) = &self.values[arguments as usize] else {
            return Err("a call without a tuple of arguments".into());
        };
        let value = match self.values[function as usize] {
            Value::Global(Global::OrderedDict) => Value::Dict(self.pairs(items)?),
            Value::Global(Global::DefaultDict) => Value::Dict(Vec::new()),
            Value::Global(function @ (Global::Tensor | Global::Parameter | Global::Size | Global::Other)) => {
                Value::Call(function, arguments)
            }
            _ => return Err("a call of what cannot be called".into()),
        };
        self.push(value)
    }

    /// What an OrderedDict is made of: nothing, or (Python 2) a list of pairs.
    fn pairs(&self, arguments: &[Id]) -> Result<Vec<(Id, Id)>> {
        let fail = || "an OrderedDict of other than a list of pairs".to_string();
        let items = match arguments {
            [] => return Ok(Vec::new()),
            [one] => match &self.values[*one as usize] {
                Value::List(items) => items,
                _ => return Err(fail()),
            },
            _ => return Err(fail()),
        };
        let pair = |id: &Id| match &self.values[*id as usize] {
            Value::List(pair) | Value::Tuple(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
            _ => Err(fail()),
        };
        items.iter().map(pair).collect()
    }

    /// What a persistent id stands for: ("storage", class, key, device, values), and in the old format a sixth that is
    /// None.
    fn storage(&self, id: Id) -> Result<Storage<'a>> {
        let Value::Tuple(items) = &self.values[id as usize] else {
            return Err("a persistent id that is no tuple".into());
        };
        let items: Vec<&Value<'a>> = items.iter().take(7).map(|id| &self.values[*id as usize]).collect();
        match items[..] {
            [
                Value::Text("storage"),
                Value::Global(Global::Storage(dtype)),
                Value::Text(key),
                Value::Text(_),
                Value::Int(len),
                ref rest @ ..,
            ] if *len >= 0 && matches!(rest, [] | [Value::None]) => {
                Ok(Storage { key, dtype: *dtype, len: len.cast_unsigned() })
            }
            [Value::Text(kind), ..] if *kind != "storage" => {
                Err(format!("a persistent id of kind `{}`; only `storage` is read", shown(kind)))
            }
            _ => Err("a persistent id that does not describe a storage".into()),
        }
    }
}

/// A whole number, little-endian, in two's complement.
fn integer(bytes: &[u8]) -> Value<'_> {
    if bytes.len() > 8 {
        return Value::Bytes(bytes);
    }
    let negative = bytes.last().is_some_and(|b| *b >= 0x80);
    let mut all = [if negative { 0xff } else { 0 }; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(all))
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| "text that is not UTF-8".into())
}

/// Text of a file as it may stand in a message: in one line, not too long, without what terminals obey.
pub(super) fn shown(text: &str) -> String {
    let cut: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() { cut + "…" } else { cut }
}

/// Name of an opcode that is not allowed, as `pickletools` has it.
fn name_of(opcode: u8) -> String {
    let name = match opcode {
        b'0' => "POP",
        b'1' => "POP_MARK",
        b'2' => "DUP",
        b'F' => "FLOAT",
        b'I' => "INT",
        b'L' => "LONG",
        b'P' => "PERSID",
        b'S' => "STRING",
        b'V' => "UNICODE",
        b'd' => "DICT",
        b'g' => "GET",
        b'i' => "INST",
        b'l' => "LIST",
        b'o' => "OBJ",
        b'p' => "PUT",
        0x80 => "PROTO",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x8b => "LONG4",
        0x8d => "BINUNICODE8",
        0x92 => "NEWOBJ_EX",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return format!("{opcode:#04x}"),
    };
    format!("{name} ({opcode:#04x})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(bytes: &[u8], why: &str) {
        let message = Pickle::read(bytes).unwrap_err();
        assert!(message.starts_with("offset ") && message.contains(why), "`{why}` is missing from {message}");
    }

    #[test]
    fn values_are_read_as_python_wrote_them() {
        // pickle.dumps([{"a": (1, -2, 70000, None, True, 2.5)}, b"\0", 1 << 70, "é"], protocol=N)
        let two = b"\x80\x02]q\x00(}q\x01X\x01\x00\x00\x00aq\x02(K\x01J\xfe\xff\xff\xffJp\x11\x01\x00N\x88G@\x04\x00\x00\x00\x00\x00\x00tq\x03sc_codecs\nencode\nq\x04X\x01\x00\x00\x00\x00q\x05X\x06\x00\x00\x00latin1q\x06\x86q\x07Rq\x08\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00@X\x02\x00\x00\x00\xc3\xa9q\x09e.";
        let four = b"\x80\x04\x95\x36\x00\x00\x00\x00\x00\x00\x00]\x94(}\x94\x8c\x01a\x94(K\x01J\xfe\xff\xff\xffJp\x11\x01\x00N\x88G@\x04\x00\x00\x00\x00\x00\x00t\x94sC\x01\x00\x94\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00@\x8c\x02\xc3\xa9\x94e.";
        for bytes in [&two[..], four] {
            let pickle = Pickle::read(bytes).unwrap();
            assert_eq!(pickle.length, bytes.len());
            let Value::List(items) = pickle.root() else { panic!("{:?}", pickle.root()) };
            let items: Vec<_> = items.iter().map(|id| pickle.get(*id).clone()).collect();
            let Value::Dict(pairs) = &items[0] else { panic!("{:?}", items[0]) };
            let Some(Value::Tuple(tuple)) = pickle.entry(pairs, "a") else { panic!("{pairs:?}") };
            let tuple: Vec<_> = tuple.iter().map(|id| pickle.get(*id).clone()).collect();
            let (int, none) = (Value::Int, Value::None);
            assert_eq!(tuple, [int(1), int(-2), int(70_000), none, Value::Bool(true), Value::Float(2.5)]);
            assert!(matches!(items[1], Value::Bytes(b"\0") | Value::Call(Global::Other, _)), "{:?}", items[1]);
            assert_eq!(items[2..], [Value::Bytes(b"\0\0\0\0\0\0\0\0\x40"), Value::Text("é")]);
        }
        for (bytes, value) in [(&[][..], 0), (&[0xff], -1), (&[0xff, 0], 255), (&[0, 0, 0, 0, 0, 0, 0, 0x80], i64::MIN)]
        {
            assert_eq!(integer(bytes), Value::Int(value));
        }
    }

    #[test]
    fn every_other_opcode_is_refused() {
        let allowed = b"NKMJGUXTCB}](taesucRbQqrhj.)\x81\x85\x86\x87\x88\x89\x8a\x8c\x8e\x8f\x90\x91\x93\x94\x95\x96";
        for opcode in (0..=255).filter(|b| !allowed.contains(b)) {
            refused(&[0x80, 2, opcode, 0, 0, 0, 0, 0, 0, 0, 0, b'.'], "is not allowed");
        }
        refused(b"\x80\x02iposix\nsystem\n.", "opcode INST (0x69)");
        refused(b"\x80\x02\x80\x02N.", "PROTO");
    }

    #[test]
    fn a_machine_that_is_led_astray_says_where() {
        for (bytes, why) in [
            (&b""[..], "offset 0: truncated"),
            (b"N.", "offset 0: this is no pickle"),
            (b"\x80\x01N.", "protocol 1"),
            (b"\x80\x06N.", "protocol 6"),
            (b"\x80\x02", "offset 2: truncated"),
            (b"\x80\x02.", "other than one value"),
            (b"\x80\x02NN.", "other than one value"),
            (b"\x80\x02(N.", "other than one value"),
            (b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R.", "offset 2: global `posix.system` is not allowed"),
            (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "offset 17: global `posix.system`"),
            (b"\x80\x02cposix\nsys", "does not end within"),
            (b"\x80\x02c\x1b[2J\nx\n.", "`\\u{1b}[2J.x`"),
            (b"\x80\x02NN\x93.", "no text"),
            (b"\x80\x02t.", "no mark"),
            (b"\x80\x02(N)R.", "cannot be called"),
            (b"\x80\x02N(a.", "nothing is on the stack"),
            (b"\x80\x02]N(\x85.", "nothing is on the stack"),
            (b"\x80\x02NNa.", "no list"),
            (b"\x80\x02N(N}e.", "no list"),
            (b"\x80\x02]NNs.", "no dictionary"),
            (b"\x80\x02}(Nu.", "a key without"),
            (b"\x80\x02NNb.", "BUILD"),
            (b"\x80\x02ccollections\nOrderedDict\nNR.", "without a tuple"),
            (b"\x80\x02ccollections\nOrderedDict\nN\x85R.", "list of pairs"),
            (b"\x80\x02ccollections\nOrderedDict\n]N\x86R.", "list of pairs"),
            (b"\x80\x02ctorch\nFloatStorage\n)R.", "cannot be called"),
            (b"\x80\x02NQ.", "no tuple"),
            (b"\x80\x02)Q.", "does not describe"),
            (b"\x80\x02(X\x06\x00\x00\x00moduleNNNtQ.", "kind `module`"),
            (b"\x80\x02h\x00.", "place 0 of the memo is empty"),
            (b"\x80\x02Nr\xff\xff\xff\xff.", "place 4294967295"),
            (b"\x80\x02q\x00.", "nothing is on the stack"),
            (b"\x80\x02X\xff\xff\xff\xffa.", "truncated: 4294967295 bytes"),
            (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\xffa.", "truncated"),
            (b"\x80\x02X\x01\x00\x00\x00\xff.", "not UTF-8"),
            (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff.", "a frame of"),
        ] {
            refused(bytes, why);
        }
        refused(&[&b"\x80\x02"[..], &[b'('; 300]].concat(), "nested more than 256");
        refused(&[&b"\x80\x02"[..], &vec![b'N'; MAX_VALUES + 1]].concat(), "more than 1048576 values");
        let fetched = [&b"\x80\x02Nq\x00"[..], &b"h\0".repeat(MAX_VALUES)].concat();
        refused(&fetched, "more than 1048576 values");
    }

    #[test]
    fn circles_and_bombs_are_only_indices() {
        // A list in itself, and one whose every level holds the one before it twice: 2^1000 leaves.
        let pickle = Pickle::read(b"\x80\x02]q\x00h\x00a.").unwrap();
        assert!(matches!(pickle.root(), Value::List(items) if items[..] == [0]));
        let bomb = [&b"\x80\x02)q\x00"[..], &b"h\x00h\x00\x86q\x00".repeat(1000)].concat();
        let [tail, head] = [&b"\x85."[..], &bomb];
        refused(&[head, tail].concat(), "other than one value");
    }
}
