import java.io.File
import java.util.Base64
import org.lightningprune.logic.Area
import org.lightningprune.logic.ColorImage
import org.lightningprune.logic.Drawing
import org.lightningprune.logic.Feed
import org.lightningprune.logic.Fit
import org.lightningprune.logic.Framing
import org.lightningprune.logic.GrayImage
import org.lightningprune.logic.ImageInput
import org.lightningprune.logic.Json
import org.lightningprune.logic.LoadedProgram
import org.lightningprune.logic.Manifest
import org.lightningprune.logic.MethodSpec
import org.lightningprune.logic.ModelException
import org.lightningprune.logic.PictureSpec
import org.lightningprune.logic.Placement
import org.lightningprune.logic.ProbePlan
import org.lightningprune.logic.ProbeRun
import org.lightningprune.logic.Reading
import org.lightningprune.logic.Scores
import org.lightningprune.logic.Session
import org.lightningprune.logic.TensorSpec
import org.lightningprune.logic.Timing

private typealias Case = Map<*, *>

/** The checks of examples/shared/vectors.json, one function a section; each throws where a value differs. */
class VectorChecks(file: File) {
    private val vectors = Json.parse(file.readText()) as Map<*, *>
    var count = 0
        private set

    val all: Map<String, () -> Unit> = linkedMapOf(
        "manifests" to this::manifests, "files" to this::files, "json" to this::json, "images" to this::images,
        "pictures" to this::pictures,
        "unfit_inputs" to this::unfitInputs, "drawings" to this::drawings, "scores" to this::scores,
        "answers" to this::answers, "readings" to this::readings, "timings" to this::timings, "measuring" to this::measuring,
        "sessions" to this::sessions, "framings" to this::framings, "probe_plans" to this::probePlans, "probe_runs" to this::probeRuns
    )

    private fun cases(section: String): List<Case> = (vectors[section] as List<*>).map { it as Case }

    private fun same(what: String, expected: Any?, found: Any?) {
        count++
        if (expected != found) throw AssertionError("$what: $expected expected, $found found")
    }

    private fun close(what: String, expected: List<Double>, found: List<Double>, tolerance: Double = 1e-6) {
        same("$what: number of values", expected.size, found.size)
        for (i in expected.indices) {
            val near = Math.abs(expected[i] - found[i]) <= tolerance * maxOf(1.0, Math.abs(expected[i]))
            if (!near) throw AssertionError("$what, value $i: ${expected[i]} expected, ${found[i]} found")
        }
    }

    private fun refused(what: String, tells: String = "", call: () -> Any?) {
        count++
        val result = try {
            call()
        } catch (error: ModelException) {
            if (error.message.isNullOrBlank()) throw AssertionError("$what: refused without a word")
            if (tells !in error.message!!) throw AssertionError("$what: no word of $tells in ${error.message}")
            return
        }
        throw AssertionError("$what: to be refused, gave $result")
    }

    private fun number(value: Any?): Double = when (value) {
        "nan" -> Double.NaN
        "inf" -> Double.POSITIVE_INFINITY
        "-inf" -> Double.NEGATIVE_INFINITY
        else -> (value as Number).toDouble()
    }

    private fun whole(value: Any?): Int = (value as Long).toInt()

    private fun doubles(value: Any?): List<Double> = (value as List<*>).map { number(it) }

    private fun floats(value: Any?): FloatArray = doubles(value).map { it.toFloat() }.toFloatArray()

    private fun wide(values: FloatArray): List<Double> = values.map { it.toDouble() }

    private fun sizes(value: Any?): List<Int> = (value as List<*>).map { whole(it) }

    private fun ranges(value: Any?): Map<Int, IntRange> = ((value ?: emptyMap<Any, Any>()) as Case).entries
        .associate { (it.key as String).toInt() to sizes(it.value).let { limits -> limits[0]..limits[1] } }

    private fun spec(value: Any?): TensorSpec = (value as Case).let {
        TensorSpec(it["name"] as String, sizes(it["shape"]), it["dtype"] as String, ranges(it["dynamic"]))
    }

    private fun manifests() = cases("manifests").forEach {
        val name = it["name"] as String
        val bytes = (it["text"] as String).toByteArray()
        val holds = it["holds"] as Case?
        if (holds == null) refused(name) { Manifest.parse(bytes) } else described(name, holds, Manifest.parse(bytes))
    }

    private fun described(name: String, holds: Case, manifest: Manifest) {
        same("$name: program", holds["program"], manifest.program.name)
        same("$name: sha256", holds["sha256"], manifest.program.sha256)
        same("$name: size", holds["size_bytes"], manifest.program.sizeBytes)
        same("$name: data", holds["data"], manifest.data.map { it.name })
        same("$name: labels", holds["labels"], manifest.labels)
        same("$name: dynamic", ranges(holds["dynamic"]), manifest.method("forward").inputs[0].dynamic)
        same("$name: shape", sizes(holds["shape"]), manifest.method("forward").inputs[0].shape)
        same("$name: picture", picture(holds["picture"]), manifest.picture)
        same("$name: state", holds["state"], manifest.state.map { it.name })
        val feeds = manifest.method("forward").feeds.map { listOf(it.input, it.output, it.first.toDouble()) }
        same("$name: feeds", holds["feeds"], feeds)
        val counts = { method: MethodSpec -> listOf(method.inputs.size.toLong(), method.outputs.size.toLong()) }
        same("$name: methods", holds["methods"], manifest.methods.mapValues { counts(it.value) })
        refused("$name: another method") { manifest.method("no such method") }
    }

    private fun files() {
        val text = cases("manifests")[0]["text"] as String
        val entry = Manifest.parse(text.toByteArray()).program
        for (case in cases("files")) {
            val bytes = Base64.getDecoder().decode(case["base64"] as String)
            val kept = ArrayList<Byte>()
            val check = {
                Manifest.checkFile(entry, bytes.inputStream()) { piece, size -> kept.addAll(piece.take(size)) }
            }
            if (case["same"] as Boolean) check() else refused(case["name"] as String, call = check)
            same("${case["name"]}: bytes handed on", bytes.toList(), kept)
        }
    }

    private fun json() = cases("json").forEach {
        val text = it["text"] as String
        if (it.containsKey("value")) same(text, it["value"], Json.parse(text)) else refused(text) { Json.parse(text) }
    }

    private fun images() = cases("images").forEach {
        val (height, width) = sizes(it["size"])
        val input = ImageInput(spec(it["input"]))
        same("$height x $width: shape", sizes(it["shape"]), input.shape())
        val values = input.values(GrayImage(height, width, floats(it["pixels"])))
        close("$height x $width", doubles(it["values"]), wide(values))
    }

    private fun picture(value: Any?): PictureSpec = (value as Case).let {
        val fit = when (it["fit"]) {
            "crop" -> Fit.Crop(it["resize"]?.let { side -> whole(side) })
            "pad" -> Fit.Pad(whole(it["fill"]))
            else -> Fit.Stretch
        }
        PictureSpec(fit, doubles(it["mean"] ?: emptyList<Any>()), doubles(it["std"] ?: emptyList<Any>()))
    }

    private fun pictures() = cases("pictures").forEach {
        val (height, width) = sizes(it["size"])
        val pixels = (it["pixels"] as List<*>).map { pixel -> (pixel as Long).toInt() }.toIntArray()
        val what = "$height x $width, ${it["rotation"]} degrees, ${it["picture"]}"
        val image = ColorImage(height, width, pixels, whole(it["rotation"]))
        val input = ImageInput(spec(it["input"]), picture(it["picture"]))
        val (top, left, tall, wide) = sizes(it["placement"])
        same("$what: placement", Placement(top, left, tall, wide), input.placement(image))
        close(what, doubles(it["values"]), wide(input.values(image)))
        refused("$what: turned askew") { ColorImage(height, width, pixels, 45) }
        refused("$what: of another size") { ColorImage(height + 1, width, pixels) }
    }

    private fun unfitInputs() = (vectors["unfit_inputs"] as List<*>).forEach {
        refused(it.toString()) { ImageInput(spec(it)) }
    }

    private fun drawings() = cases("drawings").forEach {
        val drawing = Drawing(whole(it["size"]), number(it["radius"]))
        for (line in it["lines"] as List<*>) doubles(line).let { (a, b, c, d) -> drawing.line(a, b, c, d) }
        same("${it["lines"]}: empty", (it["lines"] as List<*>).isEmpty(), drawing.isEmpty)
        close("${it["lines"]}", doubles(it["pixels"]), wide(drawing.image.values))
        val framed = drawing.framed()
        same("${it["lines"]}: side", whole(it["side"]), framed.width)
        close("${it["lines"]}, framed", doubles(it["framed"]), wide(framed.values))
        drawing.clear()
        same("${it["lines"]}: cleared", true, drawing.isEmpty)
    }

    private fun scores() = cases("scores").forEach {
        val values = floats(it["scores"])
        if (it.containsKey("class")) {
            same("${it["scores"]}", whole(it["class"]), Scores.argmax(values))
            close("${it["scores"]}", doubles(it["softmax"]), wide(Scores.softmax(values)))
        } else {
            refused("${it["scores"]}") { Scores.softmax(values) }
        }
    }

    private fun answers() = cases("answers").forEach {
        val answer = { Scores.answer(floats(it["output"]), spec(it["spec"]), (it["labels"] as List<*>).map(Any?::toString)) }
        if (it["class"] == null) {
            refused("$it") { answer() }
        } else {
            same("$it: class", whole(it["class"]), answer().index)
            same("$it: label", it["label"], answer().label)
        }
    }

    private fun corners(area: Area): List<Double> = listOf(area.left, area.top, area.right, area.bottom)

    private fun readings() = cases("readings").forEach {
        val what = "${it["spec"]} at ${it["place"]}"
        val (top, left, tall, wide) = sizes(it["place"])
        val labels = (it["labels"] as List<*>).map(Any?::toString)
        val read = { Reading.of(floats(it["output"]), spec(it["spec"]), labels, Placement(top, left, tall, wide), 64, 64) }
        val boxes = it["boxes"] as List<*>?
        when {
            boxes != null -> {
                val told = (read() as Reading.Boxes).boxes
                same("$what: labels", boxes.map { box -> (box as Case)["label"] }, told.map { box -> box.label })
                for ((box, expected) in told.zip(boxes.map { box -> box as Case })) {
                    same("$what: class", whole(expected["index"]), box.index)
                    close("$what: area", doubles(expected["area"]), corners(box.area))
                    close("$what: sure", listOf(number(expected["confidence"])), listOf(box.confidence.toDouble()))
                }
            }
            it.containsKey("classes") -> {
                val regions = read() as Reading.Regions
                same("$what: size", sizes(it["size"]), listOf(regions.rows, regions.columns))
                same("$what: classes", sizes(it["classes"]), regions.classes.toList())
                close("$what: area", doubles(it["area"]), corners(regions.area))
            }
            else -> refused(what) { read() }
        }
    }

    private fun method(value: Any?): MethodSpec = (value as Case).let {
        val feeds = ((it["feeds"] ?: emptyList<Any>()) as List<*>).map { feed -> feed as Case }
        MethodSpec(
            (it["inputs"] as List<*>).map { one -> spec(one) },
            (it["outputs"] as List<*>).map { one -> spec(one) },
            feeds.map { feed -> Feed(feed["input"] as String, feed["output"] as String, number(feed["first"]).toFloat()) }
        )
    }

    /** The program of a case: its weights times all inputs, or the text that scripts/make_vectors.py describes. */
    private fun program(case: Case, spec: MethodSpec, inputs: List<FloatArray>): List<FloatArray> {
        if (!case.containsKey("weights")) {
            val scores = FloatArray(spec.outputs[0].shape.last())
            scores[(3 * inputs[0].last().toInt() + inputs[1].last().toInt()) % scores.size] = 1f
            return listOf(scores)
        }
        val weights = doubles(case["weights"])
        val all = inputs.flatMap { wide(it) }
        val sums = weights.chunked(all.size) { row -> row.indices.sumOf { row[it] * all[it] }.toFloat() }
        var start = 0
        return spec.outputs.map { one -> sums.subList(start, start + one.count).toFloatArray().also { start += one.count } }
    }

    private fun values(value: Any?): Map<String, FloatArray> =
        ((value ?: emptyMap<Any, Any>()) as Case).entries.associate { it.key as String to floats(it.value) }

    private fun lists(values: Map<String, FloatArray>): Map<String, List<Float>> = values.mapValues { it.value.toList() }

    private fun sessions() = cases("sessions").forEach { case ->
        val spec = method(case["spec"])
        var restarts = 0
        var isFailing = false
        var other: (() -> Unit)? = null
        val session = Session(spec, (case["keeps"] as List<*>).map { it as String }, { restarts++ }) { inputs, _ ->
            other?.let { call -> Thread { refused("another thread", call = call) }.apply { start() }.join() }
            if (isFailing) throw ModelException("no memory") else program(case, spec, inputs)
        }
        other = { session.reset() }
        for (event in (case["events"] as List<*>).map { it as Case }) {
            val what = "$event"
            val inputs = ((event["inputs"] ?: emptyList<Any>()) as List<*>).map { floats(it) }
            val gives = event["gives"] as List<*>?
            when (event["do"]) {
                "step" ->
                    if (gives == null) refused(what) { session.step(inputs) }
                    else same(what, gives.map { floats(it).toList() }, session.step(inputs).map { it.toList() })
                "fail" -> {
                    isFailing = true
                    refused(what) { session.step(inputs) }
                    isFailing = false
                }
                "reset" ->
                    if (event.containsKey("refused")) refused(what) { session.reset(values(event["first"])) }
                    else session.reset(values(event["first"]))
                "state" -> same(what, lists(values(event["is"])), lists(session.state))
                else -> {
                    val told = ArrayList<Int>()
                    val write = { session.generate(sizes(event["prompt"]), whole(event["max"]), sizes(event["stop"]).toSet()) { told.add(it) } }
                    if (gives == null) refused(what) { write() } else same(what, sizes(gives), write())
                    same("$what: told", if (gives == null) emptyList<Int>() else sizes(gives), told)
                }
            }
        }
        same("restarts", whole(case["restarts"]), restarts)
    }

    private fun timings() = cases("timings").forEach {
        val times = doubles(it["milliseconds"])
        if (it.containsKey("median")) {
            val timing = Timing(times)
            val expected = listOf("median", "spread", "fastest", "p90").map { key -> number(it[key]) }
            close("$times", expected, listOf(timing.median, timing.spread, timing.fastest, timing.quantile(0.9)), 1e-12)
        } else {
            refused("$times") { Timing(times) }
        }
    }

    private fun framings() = cases("framings").forEach {
        val window = whole(it["window"])
        val hop = whole(it["hop"])
        val what = "frames of $window every $hop"
        if (!it.containsKey("frames")) return@forEach refused(what) { Framing(window, hop) }
        val samples = sizes(it["samples"]).map { sample -> sample.toShort() }.toShortArray()
        val framing = Framing(window, hop)
        repeat(2) { _ ->
            var start = 0
            val frames = ArrayList<FloatArray>()
            for ((size, done) in sizes(it["sizes"]).zip(sizes(it["done"]))) {
                // a buffer is longer than what was read into it
                frames += framing.push(samples.copyOfRange(start, start + size) + ShortArray(3), size)
                start += size
                same("$what after $start samples", done, frames.size)
            }
            close(what, doubles(it["frames"]), frames.flatMap { frame -> wide(frame) })
            framing.reset()
        }
        val floats = framing.push(FloatArray(samples.size) { i -> samples[i] / 32768f })
        close("$what, of floats", doubles(it["frames"]), floats.flatMap { frame -> wide(frame) })
        refused("$what: an error's number") { framing.push(samples, -3) }
        refused("$what: more than there are") { framing.push(samples, samples.size + 1) }
    }

    private fun measuring() {
        var now = 0L
        var runs = 0
        val timing = Timing.measure(rounds = 3, warmUp = 2, clock = { now }) { now += 1_000_000L * ++runs }
        same("runs", 5, runs)
        same("timed", 3, timing.runs)
        close("times", listOf(4.0, 3.0), listOf(timing.median, timing.fastest), 1e-12)
    }

    private fun probePlans() = cases("probe_plans").forEach {
        val name = it["name"] as String
        val bytes = (it["text"] as String).toByteArray()
        val holds = it["holds"] as Case?
        if (holds == null) {
            refused(name, it["tells"] as String) { ProbePlan.parse(bytes) }
        } else {
            val plan = ProbePlan.parse(bytes)
            same("$name: digest", holds["digest"], plan.digest)
            same("$name: name", holds["name"], plan.name)
            same("$name: threads", holds["threads"], plan.threads.toLong())
            same("$name: passes", holds["passes"], plan.passes.toLong())
            same("$name: rounds", holds["rounds"], plan.rounds.toLong())
            same("$name: files", holds["files"], plan.files)
            same("$name: turns", holds["turns"], plan.turns.map { turn -> turn.map { program -> program.name } })
            same("$name: programs", holds["programs"], plan.programs.map { program ->
                val shapes = program.inputs.map { input -> input.shape.map { size -> size.toLong() } }
                mapOf(
                    "name" to program.name, "file" to program.file, "method" to program.method, "shapes" to shapes,
                    "dtypes" to program.inputs.map { input -> input.dtype }
                )
            })
        }
    }

    private fun probeRuns() = cases("probe_runs").forEach { case ->
        val plan = ProbePlan.parse((cases("probe_plans")[0]["text"] as String).toByteArray())
        val costs = case["costs"] as Map<*, *>
        val calls = ArrayList<String>()
        var now = 0L
        val run = ProbeRun(plan, case["tick"] as Long) { now }
        var told = Pair(0L, 0L)
        val progress = { done: Long, all: Long -> told = Pair(done, all) }
        val results = run.results("a \"phone\"\t\uD83D\uDE42", 1, "thread", progress) { program ->
            calls.add("load ${program.name}")
            if (program.name in case["missing"] as List<*>) throw ModelException("${program.name} fails")
            object : LoadedProgram {
                override fun run() {
                    calls.add(program.name)
                    if (program.name in case["failing"] as List<*>) throw ModelException("${program.name} fails")
                    now += costs[program.name] as Long
                }

                override fun close() {
                    calls.add("close ${program.name}")
                }
            }
        }
        val rows = (case["calls"] as List<*>).zip(case["counts"] as List<*>)
        same("calls", rows.flatMap { (call, count) -> List(whole(count)) { call } }, calls)
        same("results", Json.parse(case["results"] as String), Json.parse(results.toJson()))
        same("turns", (plan.passes * plan.turns.size).toLong().let { Pair(it, it) }, told)
        now = 0L
        same("tick", 3L, ProbeRun.tick { now++ / 3 * 3 })
    }
}

fun main(arguments: Array<String>) {
    val checks = VectorChecks(File(arguments[0]))
    for ((section, check) in checks.all) {
        check()
        println(section)
    }
    println("${checks.count} checks passed")
}
