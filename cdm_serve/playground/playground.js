// The playground: asks this server for pictures and keeps them in this browser.
// Every address is relative to the page, so that it works below a path prefix too.

const EXAMPLES = [
  "a fox in the snow", "an octopus at sea", "a rocket at the top at night", "a cactus in the desert",
  "a panda on the right on a teal background", "a tree left of a tent in a grassy field",
];
const PARTIALS = 3;
const KEPT = 60;
const MAX_IMAGES = 10;
// Pixels up to which a picture is enlarged without smoothing.
const SMALL = 256;
const STAGES = {
  queue: "queue", text: "text", picture: "image", steps: "steps", partials: "previews", decode: "decode", encode: "file",
};
const NAME = `cdm-serve ${location.pathname}`;

const $ = id => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const button = (text, onclick, className = "action") =>
  element("button", { type: "button", className, textContent: text, onclick });

const address = path => new URL(path, document.baseURI).href;
const milliseconds = value => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const note = text => { $("note").textContent = text; };

// ---- The key and the models

// Browsers can be told to refuse a page its storage; reading the property throws then.
function storage(name) {
  try { return window[name]; } catch { return null; }
}

const authorization = () => ($("key").value ? { authorization: `Bearer ${$("key").value}` } : {});

function recallKey() {
  const remembered = storage("localStorage")?.getItem(NAME);
  $("key").value = storage("sessionStorage")?.getItem(NAME) ?? remembered ?? "";
  $("remember").checked = Boolean(remembered);
  $("access").hidden = !$("key").value;
}

function keepKey() {
  try {
    storage("sessionStorage")?.setItem(NAME, $("key").value);
    if ($("remember").checked) storage("localStorage")?.setItem(NAME, $("key").value);
    else storage("localStorage")?.removeItem(NAME);
  } catch {
    note("The browser keeps no key: it holds until this page is closed.");
  }
}

async function complaint(response) {
  if (response.status === 401 && $("access").hidden) {
    $("access").hidden = false;
    $("key").focus();
  }
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

let models = [];
let asking = null;
let question = 0;

const chosen = () => models.find(({ id }) => id === $("model").value);

async function loadModels() {
  clearTimeout(asking);
  const turn = ++question;
  let wait = "the model is being loaded…";
  let refused = null;
  let found = [];
  try {
    const response = await fetch(address("v1/models"), { headers: authorization() });
    if (response.ok) found = (await response.json()).data;
    else if (response.status === 401) refused = await complaint(response);
  } catch {
    wait = "the server cannot be reached";
  }
  // The answer to an earlier question, perhaps with another key, counts no more.
  if (turn !== question) return false;
  if (refused) {
    $("about").textContent = refused;
    return false;
  }
  const first = !models.length;
  models = found;
  if (!models.length) {
    $("about").textContent = wait;
    asking = setTimeout(loadModels, 1000);
    return false;
  }
  options($("model"), models.map(({ id }) => id), $("model").value);
  $("ask-model").hidden = models.length === 1;
  offer();
  if (first && kept.length) adopt({ ...kept[0].request, prompt: undefined, image: undefined });
  return true;
}

// ---- Settings

function options(select, values, chosen) {
  select.replaceChildren(...values.map(value => new Option(value, value, false, value === chosen)));
}

const numbers = count => Array.from({ length: count }, (_, index) => String(index + 1));

function offer() {
  const model = chosen();
  if (!model) return;
  $("about").textContent = `${model.id} · ${model.fingerprint.slice(0, 12)}`;
  $("ask-edit").hidden = !model.edits;
  for (const each of document.querySelectorAll(".edits")) each.hidden = !model.edits;
  $("examples").hidden = model.needs_picture;
  if (model.needs_picture && $("prompt").value === $("prompt").defaultValue) $("prompt").value = "";
  $("unedit").textContent = model.needs_picture ? "Another picture" : "Without the picture";
  options($("steps"), numbers(model.max_steps), String(model.default_steps));
  options($("count"), numbers(MAX_IMAGES), $("count").value || "1");
  options($("size"), model.sizes, model.default_size);
  // What was painted stays where the picture is made in the same size.
  if (!source || !model.edits) unedit();
  else if ($("size").value !== `${$("paint").width}x${$("paint").height}`) crop();
  else changes();
}

function formats() {
  $("ask-quality").hidden = $("format").value === "png";
  $("quality").disabled = $("ask-quality").hidden;
}

function settings() {
  const format = $("format").value;
  return {
    model: $("model").value,
    prompt: $("prompt").value,
    n: Number($("count").value),
    size: $("size").value,
    num_inference_steps: Number($("steps").value),
    seed: Number($("seed").value),
    ...(format === "png" ? {} : { output_format: format, output_compression: Number($("quality").value) }),
    ...edits(),
  };
}

// Sets the form to make one picture again; returns what stands in the way.
function adopt(request) {
  const { model, prompt, size, num_inference_steps, seed, output_format, output_compression } = request;
  const missing = [];
  const choose = (id, value, name) => {
    if ([...$(id).options].some(option => option.value === value)) $(id).value = value;
    else missing.push(`${name} ${value} is not served here`);
  };
  choose("model", model, "the model");
  offer();
  choose("steps", String(num_inference_steps), "the number of steps");
  choose("size", size, "the size");
  if (prompt !== undefined) $("prompt").value = prompt;
  $("seed").value = String(seed);
  $("count").value = "1";
  $("format").value = output_format ?? "png";
  if (output_compression !== undefined) $("quality").value = String(output_compression);
  formats();
  if (request.image) edit(request);
  else unedit();
  return missing;
}

// ---- The picture that the next one is made of, as the server would crop it, and the paint on it

let source = null;
let editing = 0;

// Of a file, or of an address that holds the picture itself.
async function loaded(from) {
  const image = new Image();
  image.src = from instanceof Blob ? URL.createObjectURL(from) : from;
  try {
    await image.decode();
    return image;
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

async function edit({ image, mask, strength }) {
  const turn = ++editing;
  let found, kept;
  try {
    [found, kept] = await Promise.all([loaded(image), mask && loaded(mask)]);
  } catch {
    note("That file holds no picture.");
    return false;
  }
  // Another one was chosen, or none, while this was read.
  if (turn !== editing) return false;
  source = found;
  $("error").textContent = "";
  // A model that edits sees the picture; others know of it only what is not painted anew.
  $("strength").value = strength ?? (chosen()?.needs_picture ? 1 : 0.75);
  $("edit").hidden = false;
  $("ask-picture").hidden = true;
  crop();
  if (kept) {
    const paint = $("paint").getContext("2d");
    paint.fillRect(0, 0, $("paint").width, $("paint").height);
    paint.globalCompositeOperation = "destination-out";
    paint.drawImage(kept, 0, 0);
    paint.globalCompositeOperation = "source-over";
    painted = true;
  }
  return true;
}

async function editFile(file) {
  if (!await edit({ image: file })) return;
  note(`The next picture is made of ${file.name}.`);
  $("prompt").focus();
}

function unedit() {
  editing += 1;
  source = null;
  $("edit").hidden = true;
  $("ask-picture").hidden = !chosen()?.needs_picture;
}

function crop() {
  if (!source) return;
  const [width, height] = sides($("size").value);
  const scale = Math.max(width / source.naturalWidth, height / source.naturalHeight);
  const [w, h] = [scale * source.naturalWidth, scale * source.naturalHeight];
  for (const id of ["source", "paint"]) Object.assign($(id), { width, height });
  const canvas = $("source").getContext("2d");
  canvas.imageSmoothingQuality = "high";
  canvas.drawImage(source, (width - w) / 2, (height - h) / 2, w, h);
  $("source").classList.toggle("small", Math.max(width, height) <= SMALL);
  const paint = $("paint").getContext("2d");
  paint.fillStyle = paint.strokeStyle = "#e5484d";
  paint.lineCap = paint.lineJoin = "round";
  painted = false;
  changes();
}

const made = ({ num_inference_steps: steps, strength = 1 }) =>
  steps - Math.min(Math.floor(steps - steps * strength), steps - 1);

function changes() {
  const steps = Number($("steps").value);
  const strength = Number($("strength").value);
  $("change").textContent = `${made({ num_inference_steps: steps, strength })} of ${plural(steps, "step")}`;
}

let painted = false;

function brush({ type, clientX, clientY, buttons, pointerId }) {
  const [canvas, paint] = [$("paint"), $("paint").getContext("2d")];
  if (type === "pointermove" && !buttons) return;
  const box = canvas.getBoundingClientRect();
  const [x, y] = [(clientX - box.left) / box.width * canvas.width, (clientY - box.top) / box.height * canvas.height];
  if (type === "pointerdown") {
    canvas.setPointerCapture(pointerId);
    paint.lineWidth = Number($("brush").value) / 100 * canvas.width;
    paint.beginPath();
    paint.moveTo(x, y);
  }
  paint.lineTo(x, y);
  paint.stroke();
  painted = true;
}

// What a request says of it: nothing, where there is none.
function edits() {
  if (!source) return {};
  const said = { image: $("source").toDataURL(), strength: Number($("strength").value) };
  if (!painted) return said;
  const mask = element("canvas", { width: $("paint").width, height: $("paint").height });
  const context = mask.getContext("2d");
  context.fillRect(0, 0, mask.width, mask.height);
  context.globalCompositeOperation = "destination-out";
  context.drawImage($("paint"), 0, 0);
  return { ...said, mask: mask.toDataURL() };
}

// Whether a picture's settings can be put into the form; says why not.
function ready() {
  $("lightbox").close();
  if (!models.length) note($("about").textContent);
  return models.length > 0;
}

// By the model that is chosen: the one that made it may take no pictures.
async function editPicture(picture, strength) {
  if (!ready()) return false;
  const { image, mask, ...request } = picture.request;
  adopt({ ...request, model: $("model").value });
  if (!await edit({ image: picture.blob, strength })) return false;
  $("edit").scrollIntoView({ block: "nearest" });
  $("prompt").focus();
  return true;
}

async function vary(picture) {
  if (leave) {
    $("lightbox").close();
    note("Other pictures are being made: wait for them, or stop them.");
  } else if (await editPicture(picture, 0.5)) {
    $("random").checked = true;
    await generate();
  }
}

// ---- Making pictures

let leave = null;

async function generate() {
  if (leave) return;
  if (!models.length) {
    $("error").textContent = $("about").textContent;
    return;
  }
  if (!$("ask-picture").hidden) {
    $("error").textContent = "Choose a picture first.";
    $("choose-picture").focus();
    return;
  }
  if ($("random").checked || !$("seed").value) {
    $("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
  }
  const body = settings();
  const before = shown;
  const batch = [];
  let begun = false;
  const tiles = expect(body.n, body.size);
  begin();
  try {
    const { response, since } = await accepted(body);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.ahead !== undefined) {
        if (!begun) say(event.ahead ? `waiting, ${plural(event.ahead, "picture")} before` : "drawing");
        continue;
      }
      begun = true;
      const tile = tiles[event.image_index];
      if (event.type.endsWith(".partial_image")) {
        preview(tile, event, event.step / made(body));
        say(body.n === 1 ? `step ${event.step} of ${made(body)}` : "drawing");
        continue;
      }
      const picture = {
        blob: decoded(event),
        request: { ...body, n: 1, seed: event.seed },
        receipt: event.receipt,
        milliseconds: performance.now() - since,
      };
      batch[event.image_index] = picture;
      complete(tile, picture);
      if (tile === tiles[0]) describe(picture);
      await keep(picture);
    }
    if (batch.filter(Boolean).length < body.n) {
      throw new Error("The connection ended before every picture had come.");
    }
    say(plural(body.n, "picture"));
  } catch (error) {
    if (error.name === "AbortError") say("stopped");
    else {
      say("");
      $("error").textContent =
        error instanceof TypeError ? "The server cannot be reached." : error.message;
    }
  } finally {
    end();
    // Any of them may have been deleted by now.
    const there = picture => kept.includes(picture);
    const came = batch.filter(there);
    if (came.length < body.n) show(came.length ? came : before.filter(there));
    else {
      shown = came;
      describe(came.includes(current) ? current : came[0]);
    }
  }
}

// The answer once the server takes the request in; while it is too busy, or loads its model, it
// says when to come back.
async function accepted(body) {
  for (;;) {
    say("waiting for the server");
    const since = performance.now();
    clock = () => performance.now() - since;
    const response = await fetch(address(`v1/images/${body.image ? "edits" : "generations"}`), {
      method: "POST",
      headers: { "content-type": "application/json", ...authorization() },
      body: JSON.stringify({ ...body, stream: true, partial_images: PARTIALS }),
      signal: leave.signal,
    });
    if (response.ok) return { response, since };
    const message = await complaint(response);
    const after = response.headers.get("retry-after-ms") ?? 1e3 * response.headers.get("retry-after");
    if (![429, 503].includes(response.status) || !after) throw new Error(message);
    say(`${message.replace(/[:;] try again.*$/, "")}. Trying again in`);
    await pause(Number(after));
  }
}

async function pause(duration) {
  leave.signal.throwIfAborted();
  const until = performance.now() + duration;
  clock = () => Math.max(0, until - performance.now());
  await new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, duration);
    leave.signal.addEventListener("abort", () => { clearTimeout(timer); reject(leave.signal.reason); });
  });
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const place = block.match(/^: (\d+) pictures before/);
      if (place) yield { ahead: Number(place[1]) };
      const data = block.split("\n").find(line => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice(6));
    }
  }
}

function decoded({ b64_json, output_format }) {
  const bytes = Uint8Array.from(atob(b64_json), character => character.charCodeAt(0));
  return new Blob([bytes], { type: `image/${output_format}` });
}

let clock = () => 0;
let ticking = null;

const say = text => { $("status").textContent = text; };

function begin() {
  leave = new AbortController();
  $("error").textContent = "";
  note("");
  $("make").setAttribute("aria-disabled", "true");
  $("stop").hidden = false;
  $("details").hidden = true;
  ticking = setInterval(() => { $("timer").textContent = `${(clock() / 1e3).toFixed(1)} s`; }, 100);
  $("result").scrollIntoView({ block: "nearest" });
}

function end() {
  leave.abort();  // what still comes, after an error, is not waited for
  leave = null;
  clearInterval(ticking);
  $("timer").textContent = "";
  $("make").removeAttribute("aria-disabled");
  if (document.activeElement === $("stop")) $("make").focus();
  $("stop").hidden = true;
}

// ---- The result: one tile a picture, and how the current one was made

let shown = [];
let current = null;

const links = new WeakMap();

function link(picture) {
  if (!links.has(picture)) links.set(picture, URL.createObjectURL(picture.blob));
  return links.get(picture);
}

const title = ({ request }) => `${request.prompt} (seed ${request.seed})`;

function fill(image, picture) {
  image.src = link(picture);
  image.alt = picture.request.prompt;
  image.classList.toggle("small", Math.max(...sides(picture.request.size)) <= SMALL);
}

const sides = size => size.split("x").map(Number);

// A frame of so many empty tiles.
function expect(count, size) {
  const [width, height] = sides(size);
  const columns = Math.ceil(Math.sqrt(count));
  const ratio = (columns * width) / (Math.ceil(count / columns) * height);
  $("frame").style.setProperty("--columns", columns);
  $("frame").style.setProperty("--shape", width / height);
  $("frame").style.setProperty("--ratio", ratio);
  const tiles = Array.from({ length: count }, (_, index) => {
    const tile = button("", null, "tile waiting");
    tile.disabled = true;
    tile.setAttribute("aria-label", `Picture ${index + 1} of ${count}, being made`);
    tile.append(
      element("img", { alt: "", className: Math.max(width, height) <= SMALL ? "small" : "" }),
      element("i", { className: "steps-done" }),
    );
    return tile;
  });
  $("frame").replaceChildren(...tiles);
  return tiles;
}

function preview(tile, { b64_json, output_format }, part) {
  const [image, bar] = tile.children;
  image.src = `data:image/${output_format};base64,${b64_json}`;
  image.classList.add("partial");
  bar.style.width = `${100 * part}%`;
}

function complete(tile, picture) {
  const [image, bar] = tile.children;
  fill(image, picture);
  image.classList.remove("partial");
  bar.remove();
  tile.classList.remove("waiting");
  tile.disabled = false;
  tile.setAttribute("aria-label", `Enlarge: ${title(picture)}`);
  tile.onclick = () => enlarge(shown.includes(picture) ? shown : [picture], picture);
}

function show(pictures) {
  shown = pictures;
  if (!pictures.length) {
    $("frame").style.setProperty("--columns", 1);
    $("frame").style.setProperty("--ratio", 1);
    $("frame").replaceChildren(element("div", { className: "empty" }, "your picture"));
    describe(null);
    return;
  }
  const tiles = expect(pictures.length, pictures[0].request.size);
  pictures.forEach((picture, index) => complete(tiles[index], picture));
  describe(pictures.includes(current) ? current : pictures[0]);
}

function describe(picture) {
  current = picture;
  [...$("frame").children].forEach((tile, index) => {
    tile.classList.toggle("current", shown.length > 1 && shown[index] === picture);
  });
  if (!picture && $("details").contains(document.activeElement)) $("prompt").focus();
  $("details").hidden = !picture;
  if (!picture) return;
  $("facts").textContent = facts(picture);
  $("times").replaceChildren(times(picture));
}

function facts({ blob, request, receipt }) {
  const shared = Math.max(...receipt.batches);
  const parts = [
    request.size, plural(receipt.steps, "step"), `seed ${receipt.seed}`, receipt.model,
    `${blob.type.slice(6).toUpperCase()}, ${(blob.size / 1e3).toFixed(blob.size < 1e5 ? 1 : 0)} kB`,
  ];
  if (receipt.strength) parts.splice(2, 0, `strength ${receipt.strength}`);
  if (shared > 1) parts.push(`shared its steps with up to ${plural(shared - 1, "other picture")}`);
  return parts.join(" · ");
}

// What can be done with a picture: the one that there is when a button is pressed.
function actions(picture) {
  const said = element("span", { className: "hint", role: "status" });
  const copies = write => async () => {
    said.textContent = (await copy(write(picture().request))) ? "copied" : "the browser lets nothing be copied";
    setTimeout(() => { said.textContent = ""; }, 2000);
  };
  return element(
    "div", { className: "actions" },
    button("Vary", () => vary(picture()), "action edits"),
    button("Edit", () => editPicture(picture()), "action edits"),
    button("Download", () => download(picture())),
    button("Use settings", () => reuse(picture())),
    button("Copy as curl", copies(asCurl)),
    button("Copy as Python", copies(asPython)),
    button("Delete", () => remove(picture())),
    said,
  );
}

function download(picture) {
  const { prompt, seed } = picture.request;
  const words = prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["picture"];
  const suffix = picture.blob.type.slice(6).replace("jpeg", "jpg");
  const name = `${words.join("-").slice(0, 48)}-${seed}.${suffix}`;
  element("a", { href: link(picture), download: name }).click();
}

function reuse(picture) {
  if (ready()) restored(`seed ${picture.request.seed}`, adopt(picture.request));
}

function restored(what, but) {
  $("random").checked = false;
  note(`The settings of ${what} are back${but.map(each => `, but ${each}`).join("")}.`);
  $("prompt").focus();
}

// A waterfall: stages overlap, so their sum is not the time it took.
function times({ receipt, milliseconds: here }) {
  const whole = Math.max(...receipt.spans.map(([, at, spent]) => at + spent));
  const rows = Object.keys(STAGES).filter(stage => receipt.milliseconds[stage] !== undefined).map(stage => {
    const track = element("div", { className: "track", ariaHidden: "true" });
    for (const [name, at, spent] of receipt.spans) {
      if (name !== stage) continue;
      const bar = element("i", { className: stage });
      bar.style.left = `${(100 * at) / whole}%`;
      bar.style.width = `${(100 * spent) / whole}%`;
      track.append(bar);
    }
    return element(
      "tr", {}, element("th", { scope: "row" }, STAGES[stage]), element("td", {}, track),
      element("td", {}, milliseconds(receipt.milliseconds[stage])),
    );
  });
  return element(
    "table", {},
    element("caption", {}, `${milliseconds(whole)} in the server, ${milliseconds(here)} as seen from here`),
    element("tbody", {}, ...rows),
  );
}

// ---- The same picture from elsewhere

function asCurl({ n, ...request }) {
  const quoted = text => `'${text.replaceAll("'", `'\\''`)}'`;
  const format = request.output_format ?? "png";
  if (request.image) {
    const { image, mask, ...fields } = request;
    return [
      `curl ${quoted(address("v1/images/edits"))}`,
      ...($("key").value ? [`-H "authorization: Bearer $CDM_API_KEY"`] : []),
      `-H 'accept: image/${format}' -F image=@image.png${mask ? " -F mask=@mask.png" : ""}`,
      ...Object.entries(fields).map(([name, value]) => `--form-string ${quoted(`${name}=${value}`)}`),
      `-o picture.${format}`,
    ].join(" \\\n  ");
  }
  return [
    `curl ${quoted(address("v1/images/generations"))}`,
    ...($("key").value ? [`-H "authorization: Bearer $CDM_API_KEY"`] : []),
    `-H 'content-type: application/json' -H 'accept: image/${format}'`,
    `-d ${quoted(JSON.stringify(request))} -o picture.${format}`,
  ].join(" \\\n  ");
}

function asPython(request) {
  const { prompt, model, size, seed, num_inference_steps, output_format, output_compression, strength } = request;
  const files = ["image", "mask"].filter(name => request[name]);
  const keyed = Boolean($("key").value);
  const named = {
    prompt, model, size, output_format, output_compression,
    extra_body: { seed, num_inference_steps, strength },
  };
  const given = Object.entries(named).filter(([, value]) => value !== undefined);
  return `import base64
${keyed ? "import os\n" : ""}
from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(address("v1"))}, api_key=${keyed ? `os.environ["CDM_API_KEY"]` : `"none"`})
answer = client.images.${files.length ? "edit" : "generate"}(
${files.map(name => `    ${name}=open("${name}.png", "rb"),\n`).join("")}${given.map(([name, value]) => `    ${name}=${JSON.stringify(value)},\n`).join("")})
with open("picture.${output_format ?? "png"}", "wb") as file:
    file.write(base64.b64decode(answer.data[0].b64_json))
`;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without https browsers give a page no clipboard, but let it copy what is selected.
    const focused = document.activeElement;
    const area = element("textarea", { value: text });
    ($("lightbox").open ? $("lightbox") : document.body).append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    focused.focus();
    return copied;
  }
}

// ---- Kept in this browser, the newest first

let kept = [];

const database = new Promise((resolve, reject) => {
  const opening = indexedDB.open(NAME, 1);
  opening.onupgradeneeded = () =>
    opening.result.createObjectStore("pictures", { keyPath: "id", autoIncrement: true });
  opening.onsuccess = () => resolve(opening.result);
  opening.onerror = () => reject(opening.error);
});

async function store(mode, act) {
  const transaction = (await database).transaction("pictures", mode);
  const request = act(transaction.objectStore("pictures"));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error);
  });
}

async function recall() {
  try {
    kept = (await store("readonly", pictures => pictures.getAll())).reverse();
  } catch (error) {
    unkept(error);
  }
  $("kept").replaceChildren(...kept.map(thumbnail));
  $("gallery").hidden = !kept.length;
}

function unkept({ name }) {
  $("gallery-title").textContent = name === "QuotaExceededError"
    ? "The newest are kept until this page is closed: the storage is full"
    : "Kept until this page is closed: the browser allows it no storage";
}

async function keep(picture) {
  kept.unshift(picture);
  $("kept").prepend(thumbnail(picture));
  $("gallery").hidden = false;
  try {
    picture.id = await store("readwrite", pictures => pictures.add(picture));
    if (!kept.includes(picture)) await forget(picture);  // it was deleted meanwhile
  } catch (error) {
    unkept(error);
  }
  for (const old of kept.slice(KEPT)) await remove(old);
}

async function remove(picture) {
  const place = kept.indexOf(picture);
  if (place >= 0) {
    kept.splice(place, 1);
    $("kept").children[place].remove();
    $("gallery").hidden = !kept.length;
  }
  if (album.includes(picture)) turn(picture);
  if (shown.includes(picture) && !leave) show(shown.filter(other => other !== picture));
  URL.revokeObjectURL(link(picture));
  links.delete(picture);
  await forget(picture);
}

async function forget({ id }) {
  if (id === undefined) return;
  try {
    await store("readwrite", pictures => pictures.delete(id));
  } catch {
    note("The browser could not delete it: it is there again when this page is loaded.");
  }
}

function thumbnail(picture) {
  const image = element("img", { loading: "lazy", decoding: "async" });
  fill(image, picture);
  const open = element("button", { type: "button", title: title(picture), onclick: () => enlarge(kept, picture) }, image);
  open.setAttribute("aria-label", `Enlarge: ${title(picture)}`);
  return element("li", {}, open);
}

async function clear() {
  if (!confirm(`Delete ${plural(kept.length, "picture")} from this browser?`)) return;
  // Those of other tabs too.
  await store("readwrite", pictures => pictures.clear()).catch(() => {});
  for (const picture of [...kept]) await remove(picture);
}

// ---- One picture, large

let album = [];
let page = 0;

function enlarge(pictures, picture) {
  album = [...pictures];
  open(album.indexOf(picture));
  if (!$("lightbox").open) $("lightbox").showModal();
}

function open(number) {
  page = number;
  const picture = album[page];
  enlarged(false);
  fill($("large"), picture);
  $("lightbox-prompt").textContent = picture.request.prompt;
  $("lightbox-facts").textContent = facts(picture);
  $("previous").disabled = page === 0;
  $("next").disabled = page === album.length - 1;
  if (shown.includes(picture)) describe(picture);
}

const step = by => { if (album[page + by]) open(page + by); };

// Takes one picture out, and closes the album with its last.
function turn(picture) {
  album.splice(album.indexOf(picture), 1);
  if (album.length) open(Math.min(page, album.length - 1));
  else $("lightbox").close();
}

const zoomed = () => $("stage").classList.contains("zoomed");

function enlarged(whether) {
  $("stage").classList.toggle("zoomed", whether);
  $("zoom").setAttribute("aria-pressed", whether);
}

// Around a place, in parts of its width and height, which the arrow keys then move.
function zoom(x, y) {
  const stage = $("stage");
  enlarged(!zoomed());
  if (!zoomed()) return;
  stage.scrollTo({
    left: x * stage.scrollWidth - stage.clientWidth / 2, top: y * stage.scrollHeight - stage.clientHeight / 2,
  });
  stage.focus();
}

let touched = null;

function swipe({ changedTouches: [touch] }) {
  const by = touched === null ? 0 : touch.clientX - touched;
  touched = null;
  if (Math.abs(by) > 60 && !zoomed()) step(by < 0 ? 1 : -1);
}

// ---- Settings out of a file

const latin = new TextDecoder("latin1");
const utf8 = new TextDecoder();

// What the server wrote into a file that it made, by name; undefined for any other file.
async function written(file) {
  try {
    const bytes = new Uint8Array(await file.arrayBuffer());
    const begins = latin.decode(bytes.subarray(0, 4));
    const found = begins.endsWith("PNG") ? fromPng(bytes)
      : begins.startsWith("\xff\xd8") ? JSON.parse(utf8.decode(fromJpeg(bytes)))
      : begins === "RIFF" ? JSON.parse(latin.decode(fromWebp(bytes)).match(/\{.*\}/s)[0])
      : {};
    return found.seed && found.steps && found.model ? found : undefined;
  } catch {
    return undefined;
  }
}

function fromPng(bytes) {
  const view = new DataView(bytes.buffer);
  const found = {};
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    const kind = latin.decode(bytes.subarray(at + 4, at + 8));
    const data = bytes.subarray(at + 8, at + 8 + length);
    const name = latin.decode(data.subarray(0, data.indexOf(0)));
    if (kind === "tEXt") found[name] = latin.decode(data.subarray(name.length + 1));
    // Between name and text: two flags, a language and a translated name, both empty.
    if (kind === "iTXt") found[name] = utf8.decode(data.subarray(name.length + 5));
    at += 12 + length;
  }
  return found;
}

function fromJpeg(bytes) {
  const view = new DataView(bytes.buffer);
  for (let at = 2; view.getUint16(at) !== 0xffda; at += 2 + view.getUint16(at + 2)) {
    if (view.getUint16(at) === 0xfffe) return bytes.subarray(at + 4, at + 2 + view.getUint16(at + 2));
  }
  return bytes.subarray(0, 0);
}

function fromWebp(bytes) {
  const view = new DataView(bytes.buffer);
  for (let at = 12; at + 8 <= bytes.length;) {
    const length = view.getUint32(at + 4, true);
    if (latin.decode(bytes.subarray(at, at + 4)) === "EXIF") return bytes.subarray(at + 8, at + 8 + length);
    at += 8 + length + (length % 2);
  }
  return bytes.subarray(0, 0);
}

async function restore(file) {
  const found = await written(file);
  const picture = await loaded(file).catch(() => null);
  if (picture && chosen()?.edits && (!found || !$("ask-picture").hidden)) {
    await editFile(file);
    return;
  }
  if (!found || !picture) {
    note(`${file.name} holds no settings: it was not made by this server, or another program has rewritten it.`);
    return;
  }
  const but = adopt({
    prompt: found.prompt,
    model: found.model,
    size: `${picture.naturalWidth}x${picture.naturalHeight}`,
    num_inference_steps: Number(found.steps),
    seed: Number(found.seed),
    output_format: file.type === "image/png" ? undefined : file.type.slice(6),
  });
  const served = models.find(({ id }) => id === found.model);
  if (served && served.fingerprint !== found.fingerprint) {
    but.push("the model has been replaced since, so the picture will differ");
  }
  if (served && (found.decoder ?? "full") !== served.default_decoder) but.push("another decoder made it");
  if (found.strength) but.push("the picture that it was made of is not in the file");
  if (found.prompt === undefined) but.push("the prompt is not in the file: write it yourself");
  restored(file.name, but);
}

// ---- Wiring

$("facts").after(actions(() => current));
$("lightbox-facts").after(actions(() => album[page]));
$("examples").append(...EXAMPLES.map(text => button(text, () => {
  $("prompt").value = text;
  $("form").requestSubmit();
}, "")));
$("form").onsubmit = event => { event.preventDefault(); generate(); };
$("form").onkeydown = event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
};
$("seed").oninput = () => { $("random").checked = false; };
$("model").onchange = offer;
$("format").onchange = formats;
$("size").onchange = crop;
$("steps").onchange = $("strength").oninput = changes;
$("unpaint").onclick = crop;
$("unedit").onclick = () => {
  unedit();
  ($("ask-picture").hidden ? $("prompt") : $("choose-picture")).focus();
};
$("paint").onpointerdown = $("paint").onpointermove = brush;
$("stop").onclick = () => leave?.abort();
$("access").onsubmit = async event => {
  event.preventDefault();
  keepKey();
  if (await loadModels()) $("prompt").focus();
};
$("clear").onclick = clear;

$("previous").onclick = () => step(-1);
$("next").onclick = () => step(1);
$("close").onclick = () => $("lightbox").close();
$("large").onclick = ({ clientX, clientY }) => {
  const box = $("large").getBoundingClientRect();
  zoom((clientX - box.left) / box.width, (clientY - box.top) / box.height);
};
$("zoom").onclick = () => zoom(0.5, 0.5);
$("stage").ontouchstart = ({ touches }) => { touched = touches.length === 1 ? touches[0].clientX : null; };
$("stage").ontouchend = swipe;
$("lightbox").onclose = () => {
  album = [];
  // What opened it may have been deleted in it.
  const focused = document.activeElement;
  if (focused === document.body || $("lightbox").contains(focused)) $("make").focus({ preventScroll: true });
};
document.onkeydown = ({ key }) => {
  if ($("lightbox").open) {
    if (key === "ArrowLeft" && !zoomed()) step(-1);
    if (key === "ArrowRight" && !zoomed()) step(1);
  } else if (key === "Escape") leave?.abort();
};

const carriesFiles = event => event.dataTransfer?.types.includes("Files");
document.ondragover = event => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  document.body.classList.add("dropping");
};
document.ondragleave = event => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
};
document.ondrop = event => {
  document.body.classList.remove("dropping");
  if (!carriesFiles(event)) return;
  event.preventDefault();
  receive(event.dataTransfer.files, restore);
};
function receive([file], take) {
  if (!models.length) note($("about").textContent);
  else if (file) take(file);
}
let take = restore;
$("choose").onclick = () => { take = restore; $("file").click(); };
$("choose-edit").onclick = $("choose-picture").onclick = () => { take = editFile; $("file").click(); };
$("file").onchange = () => {
  receive($("file").files, take);
  $("file").value = "";
};

formats();
recallKey();
await recall();
show(kept.slice(0, 1));
if (kept.length) $("prompt").value = kept[0].request.prompt;
loadModels();
