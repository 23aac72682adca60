// A small terminal: what a shell, a boot log and an editor need of ECMA-48 and xterm, in 80 by 24.
"use strict";

const COLUMNS = 80, ROWS = 24, KEPT = 500;
const COLORS = ["#000000", "#cd3131", "#0dbc79", "#e5e510", "#2472c8", "#bc3fbc", "#11a8cd",
  "#e5e5e5", "#666666", "#f14c4c", "#23d18b", "#f5f543", "#3b8eea", "#d670d6", "#29b8db", "#ffffff"];

const PLAIN = { front: null, back: null, bold: false, under: false, inverse: false };

class Screen {
  constructor(answer) {
    this.answer = answer;
    this.reset();
  }

  reset() {
    this.history = [];
    this.lines = Array.from({ length: ROWS }, () => this.blank());
    this.row = this.column = 0;
    this.style = { ...PLAIN };
    this.top = 0;
    this.bottom = ROWS - 1;
    this.saved = { row: 0, column: 0 };
    this.other = null;
    this.shown = true;
    this.wraps = false;
    this.state = "text";
    this.sequence = "";
    this.applicationKeys = false;
  }

  blank() {
    return Array.from({ length: COLUMNS }, () => ({ text: " ", style: PLAIN }));
  }

  write(text) {
    for (const letter of text) this.put(letter);
  }

  put(letter) {
    const code = letter.codePointAt(0);
    switch (this.state) {
      case "text":
        if (code === 0x1b) this.state = "escape";
        else if (code < 0x20 || code === 0x7f) this.control(code);
        else this.print(letter);
        return;
      case "escape":
        this.escape(letter);
        return;
      case "skip":
        this.state = "text";
        return;
      case "string":
        if (code === 0x07) this.state = "text";
        else if (code === 0x1b) this.state = "skip";
        return;
      default:
        if (code === 0x1b) { this.state = "escape"; return; }
        if (code < 0x20) { this.control(code); return; }
        if (code >= 0x40 && code <= 0x7e) {
          this.state = "text";
          this.command(letter, this.sequence);
        } else if (this.sequence.length < 64) {
          this.sequence += letter;
        }
    }
  }

  control(code) {
    if (code === 0x0d) { this.column = 0; this.wraps = false; }
    else if (code >= 0x0a && code <= 0x0c) this.feed();
    else if (code === 0x08) { this.column = Math.max(0, this.column - 1); this.wraps = false; }
    else if (code === 0x09) this.column = Math.min(COLUMNS - 1, (this.column | 7) + 1);
  }

  escape(letter) {
    this.state = "text";
    if (letter === "[") { this.state = "command"; this.sequence = ""; }
    else if ("]PX^_".includes(letter)) this.state = "string";
    else if ("()*+#% ".includes(letter)) this.state = "skip";
    else if (letter === "7") this.saved = { row: this.row, column: this.column };
    else if (letter === "8") this.move(this.saved.row, this.saved.column);
    else if (letter === "D") this.feed();
    else if (letter === "E") { this.column = 0; this.feed(); }
    else if (letter === "M") this.back();
    else if (letter === "c") this.reset();
  }

  print(letter) {
    if (this.wraps) { this.column = 0; this.feed(); }
    this.lines[this.row][this.column] = { text: letter, style: { ...this.style } };
    this.wraps = this.column === COLUMNS - 1;
    if (!this.wraps) this.column += 1;
  }

  feed() {
    this.wraps = false;
    if (this.row === this.bottom) this.scroll(this.top, this.bottom, 1);
    else this.row = Math.min(ROWS - 1, this.row + 1);
  }

  back() {
    if (this.row === this.top) this.scroll(this.top, this.bottom, -1);
    else this.row = Math.max(0, this.row - 1);
  }

  scroll(from, to, count) {
    for (let done = 0; done < Math.min(Math.abs(count), ROWS); done += 1) {
      if (count > 0) {
        const [gone] = this.lines.splice(from, 1);
        this.lines.splice(to, 0, this.blank());
        if (from === 0 && !this.other) this.history.push(gone);
      } else {
        this.lines.splice(to, 1);
        this.lines.splice(from, 0, this.blank());
      }
    }
    if (this.history.length > KEPT) this.history.splice(0, this.history.length - KEPT);
  }

  move(row, column) {
    this.row = Math.max(0, Math.min(ROWS - 1, row));
    this.column = Math.max(0, Math.min(COLUMNS - 1, column));
    this.wraps = false;
  }

  erase(row, from, to) {
    for (let column = from; column < to; column += 1) {
      this.lines[row][column] = { text: " ", style: { ...PLAIN, back: this.style.back } };
    }
  }

  command(letter, sequence) {
    const isPrivate = /^[?>=<]/.test(sequence);
    const numbers = sequence.replace(/^[?>=<]/, "").split(";").map((part) => parseInt(part, 10) || 0);
    const count = Math.max(1, Math.min(numbers[0], 1000));
    const line = this.lines[this.row];
    if (isPrivate) { this.mode(letter, numbers); return; }
    switch (letter) {
      case "A": this.move(this.row - count, this.column); break;
      case "B": case "e": this.move(this.row + count, this.column); break;
      case "C": case "a": this.move(this.row, this.column + count); break;
      case "D": this.move(this.row, this.column - count); break;
      case "E": this.move(this.row + count, 0); break;
      case "F": this.move(this.row - count, 0); break;
      case "G": case "`": this.move(this.row, count - 1); break;
      case "d": this.move(count - 1, this.column); break;
      case "H": case "f": this.move(count - 1, Math.max(1, numbers[1] || 1) - 1); break;
      case "J": this.clear(numbers[0]); break;
      case "K":
        this.erase(this.row, numbers[0] === 0 ? this.column : 0,
          numbers[0] === 1 ? this.column + 1 : COLUMNS);
        break;
      case "L": this.scroll(this.row, this.bottom, -count); break;
      case "M": this.scrollHere(count); break;
      case "S": this.scroll(this.top, this.bottom, count); break;
      case "T": this.scroll(this.top, this.bottom, -count); break;
      case "P":
        line.splice(this.column, count);
        while (line.length < COLUMNS) line.push({ text: " ", style: PLAIN });
        break;
      case "@":
        for (let done = 0; done < Math.min(count, COLUMNS); done += 1) {
          line.splice(this.column, 0, { text: " ", style: PLAIN });
        }
        line.length = COLUMNS;
        break;
      case "X": this.erase(this.row, this.column, Math.min(COLUMNS, this.column + count)); break;
      case "m": this.paint(numbers); break;
      case "n":
        if (numbers[0] === 6) this.answer(`\x1b[${this.row + 1};${this.column + 1}R`);
        break;
      case "c": this.answer("\x1b[?6c"); break;
      case "r": {
        const bottom = (numbers[1] || ROWS) - 1;
        if (count - 1 < bottom && bottom < ROWS) { this.top = count - 1; this.bottom = bottom; }
        this.move(0, 0);
        break;
      }
      case "s": this.saved = { row: this.row, column: this.column }; break;
      case "u": this.move(this.saved.row, this.saved.column); break;
    }
  }

  // Lines that are taken out in the middle are nobody's history.
  scrollHere(count) {
    const kept = this.history;
    this.history = [];
    this.scroll(this.row, this.bottom, count);
    this.history = kept;
  }

  clear(what) {
    const from = what === 0 ? this.row + 1 : 0;
    const to = what === 1 ? this.row : ROWS;
    for (let row = from; row < to; row += 1) this.erase(row, 0, COLUMNS);
    if (what === 0) this.erase(this.row, this.column, COLUMNS);
    if (what === 1) this.erase(this.row, 0, this.column + 1);
  }

  mode(letter, numbers) {
    const isOn = letter === "h";
    if (!isOn && letter !== "l") return;
    for (const number of numbers) {
      if (number === 1) this.applicationKeys = isOn;
      if (number === 25) this.shown = isOn;
      if ([47, 1047, 1049].includes(number) && isOn !== (this.other !== null)) {
        if (isOn) {
          this.other = { lines: this.lines, row: this.row, column: this.column };
          this.lines = Array.from({ length: ROWS }, () => this.blank());
        } else {
          this.lines = this.other.lines;
          this.move(this.other.row, this.other.column);
          this.other = null;
        }
      }
    }
  }

  paint(numbers) {
    for (let at = 0; at < numbers.length; at += 1) {
      const number = numbers[at];
      if (number === 0) this.style = { ...PLAIN };
      else if (number === 1) this.style.bold = true;
      else if (number === 4) this.style.under = true;
      else if (number === 7) this.style.inverse = true;
      else if (number === 22) this.style.bold = false;
      else if (number === 24) this.style.under = false;
      else if (number === 27) this.style.inverse = false;
      else if (number >= 30 && number <= 37) this.style.front = COLORS[number - 30];
      else if (number >= 90 && number <= 97) this.style.front = COLORS[number - 82];
      else if (number >= 40 && number <= 47) this.style.back = COLORS[number - 40];
      else if (number >= 100 && number <= 107) this.style.back = COLORS[number - 92];
      else if (number === 39) this.style.front = null;
      else if (number === 49) this.style.back = null;
      else if (number === 38 || number === 48) {
        const isIndexed = numbers[at + 1] === 5;
        const color = isIndexed ? indexed(numbers[at + 2] || 0)
          : `rgb(${(numbers.slice(at + 2, at + 5).concat([0, 0, 0])).slice(0, 3).join()})`;
        this.style[number === 38 ? "front" : "back"] = color;
        at += isIndexed ? 2 : 4;
      }
    }
  }
}

function indexed(number) {
  if (number < 16) return COLORS[number];
  if (number > 231) return `rgb(${Array(3).fill(8 + (number - 232) * 10).join()})`;
  const part = (divisor) => [0, 95, 135, 175, 215, 255][Math.floor((number - 16) / divisor) % 6];
  return `rgb(${part(36)},${part(6)},${part(1)})`;
}

const KEYS = {
  Enter: "\r", Backspace: "\x7f", Tab: "\t", Escape: "\x1b", Delete: "\x1b[3~", Insert: "\x1b[2~",
  Home: "\x1b[H", End: "\x1b[F", PageUp: "\x1b[5~", PageDown: "\x1b[6~",
  F1: "\x1bOP", F2: "\x1bOQ", F3: "\x1bOR", F4: "\x1bOS", F5: "\x1b[15~", F6: "\x1b[17~",
  F7: "\x1b[18~", F8: "\x1b[19~", F9: "\x1b[20~", F10: "\x1b[21~", F11: "\x1b[23~", F12: "\x1b[24~",
};
const ARROWS = { ArrowUp: "A", ArrowDown: "B", ArrowRight: "C", ArrowLeft: "D" };

function keysOf(event, screen) {
  if (event.metaKey || event.isComposing) return null;
  if (ARROWS[event.key]) return (screen.applicationKeys ? "\x1bO" : "\x1b[") + ARROWS[event.key];
  if (KEYS[event.key]) return KEYS[event.key];
  if (event.key.length !== 1) return null;
  if (event.ctrlKey && event.shiftKey) return null;
  if (event.ctrlKey) {
    const code = event.key.toUpperCase().charCodeAt(0);
    if (event.key === " ") return "\0";
    return code >= 0x40 && code <= 0x5f ? String.fromCharCode(code & 0x1f) : null;
  }
  return (event.altKey ? "\x1b" : "") + event.key;
}

function start() {
  const place = document.getElementById("terminal");
  const state = document.getElementById("state");
  const socket = new WebSocket(`ws://${location.host}/ws${location.search}`);
  socket.binaryType = "arraybuffer";
  const send = (text) => {
    if (socket.readyState === WebSocket.OPEN) socket.send(new TextEncoder().encode(text));
  };
  const screen = new Screen(send);
  const decoder = new TextDecoder();
  let isDue = false;

  const draw = () => {
    isDue = false;
    const isAtEnd = innerHeight + scrollY >= document.body.scrollHeight - 20;
    const rows = screen.history.concat(screen.lines).map((line, index) => {
      const row = document.createElement("div");
      const isCursors = screen.shown && index === screen.history.length + screen.row;
      for (let column = 0; column < COLUMNS; ) {
        const isCursor = isCursors && column === screen.column;
        const { style } = line[column];
        let text = line[column].text, next = column + 1;
        while (!isCursor && next < COLUMNS && same(line[next].style, style)
          && !(isCursors && next === screen.column)) {
          text += line[next].text;
          next += 1;
        }
        row.append(span(text, style, isCursor));
        column = next;
      }
      return row;
    });
    place.replaceChildren(...rows);
    if (isAtEnd) scrollTo(0, document.body.scrollHeight);
  };

  socket.onopen = () => { state.textContent = "connected"; place.focus(); };
  socket.onclose = () => { state.textContent = "the connection is closed; reload to connect again"; };
  socket.onmessage = (message) => {
    screen.write(decoder.decode(message.data, { stream: true }));
    if (!isDue) { isDue = true; requestAnimationFrame(draw); }
  };
  place.addEventListener("keydown", (event) => {
    const keys = keysOf(event, screen);
    if (keys !== null) { event.preventDefault(); send(keys); }
  });
  place.addEventListener("paste", (event) => {
    event.preventDefault();
    send(event.clipboardData.getData("text").replace(/\r?\n/g, "\r"));
  });
  draw();
}

function same(a, b) {
  return Object.keys(PLAIN).every((key) => a[key] === b[key]);
}

function span(text, style, isCursor) {
  const element = document.createElement("span");
  element.textContent = text;
  let [front, back] = [style.front, style.back];
  if (style.inverse) [front, back] = [back || "#101010", front || "#d0d0d0"];
  if (isCursor) element.className = "cursor";
  else {
    if (front) element.style.color = front;
    if (back) element.style.background = back;
  }
  if (style.bold) element.style.fontWeight = "bold";
  if (style.under) element.style.textDecoration = "underline";
  return element;
}

if (typeof document === "undefined") module.exports = { Screen };
else start();
