package org.lightningprune.logic

import java.io.Closeable
import java.util.concurrent.atomic.AtomicBoolean

/**
 * Calls of a program in a row: what it gives for the next call goes into it.
 *
 * A call that is refused or fails changes nothing: the next one goes on from the one before. Only what the program keeps
 * in itself, [keeps], may be half written then, and such a session asks for [reset] first. Calls have an order: a second
 * thread in a call is refused, and the first goes on. Everything that can be wrong is a [ModelException].
 *
 * [restart]: lets what the program keeps in itself be what it was at first. [run]: takes the values and the shapes of all
 * inputs and returns the values of all outputs.
 */
class Session(
    private val spec: MethodSpec,
    private val keeps: List<String> = emptyList(),
    private val restart: () -> Unit = {},
    private val end: () -> Unit = {},
    private val run: (List<FloatArray>, List<List<Int>>) -> List<FloatArray>
) : Closeable {
    private val own = spec.inputs.filter { input -> spec.feeds.none { it.input == input.name } }
    private val busy = AtomicBoolean(false)
    private var isLost = false
    private var written = 0
    private var last: Int? = null

    @Volatile
    private var fed = begun(emptyMap())

    /** What the next step takes from the ones before, by the name of the input; [reset] goes on from it. */
    val state: Map<String, FloatArray> get() = fed.mapValues { it.value.copyOf() }

    /** Make a call with the inputs that are not fed, in order, and return all outputs; [shapes] as in `run`. */
    fun step(inputs: List<FloatArray>, shapes: List<List<Int>>? = null): List<FloatArray> = alone { taken(inputs, shapes) }

    /** Begin anew, with these values of fed inputs, such as an earlier [state]; any other as the manifest says. */
    fun reset(first: Map<String, FloatArray> = emptyMap()) {
        val values = begun(first)
        alone {
            restart()
            fed = values
            isLost = false
            written = 0
            last = null
        }
    }

    /**
     * Go on writing after [prompt], the likeliest token each time, until [max] tokens are written, one of [stop] is, or the
     * program has no place left. [each] is told every token at once. A text goes on with the next prompt; [reset] begins
     * another one. For programs that take tokens (1, n) and their positions (n), and give what follows the last.
     */
    fun generate(
        prompt: List<Int>,
        max: Int,
        stop: Set<Int> = emptySet(),
        each: (Int) -> Unit = {}
    ): List<Int> = alone {
        val ranks = own.map { it.shape.size }
        if (ranks != listOf(2, 1) || own.any { it.dtype != "int64" } || spec.outputs.isEmpty()) {
            throw ModelException("the program takes ${own.joinToString()}: it does not write text from tokens and positions")
        }
        if (prompt.isEmpty() || max < 1) throw ModelException("a prompt of ${prompt.size} tokens, and $max to write")
        val places = own[0].dynamic[1]?.last ?: own[0].shape[1]
        var given = listOfNotNull(last) + prompt
        if (written + given.size > places) {
            throw ModelException(
                "the prompt has ${given.size} tokens, and ${places - written} of $places places are left: shorten it, or"
                    + " reset the session"
            )
        }
        val tokens = ArrayList<Int>()
        do {
            val positions = FloatArray(given.size) { (written + it).toFloat() }
            val shapes = listOf(listOf(1, given.size), listOf(given.size))
            val logits = taken(listOf(FloatArray(given.size) { given[it].toFloat() }, positions), shapes)[0]
            written += given.size
            val width = spec.outputs[0].shape.last()
            val next = Scores.argmax(logits.copyOfRange(logits.size - width, logits.size))
            tokens.add(next)
            last = next
            each(next)
            given = listOf(next)
        } while (next !in stop && tokens.size < max && written < places)
        tokens
    }

    override fun close() = end()

    private fun taken(inputs: List<FloatArray>, shapes: List<List<Int>>?): List<FloatArray> {
        if (inputs.size != own.size || (shapes != null && shapes.size != own.size)) {
            throw ModelException("a step takes ${own.joinToString()}; got ${inputs.size} inputs")
        }
        own.forEachIndexed { i, one -> one.check(inputs[i].size, shapes?.get(i) ?: one.shape) }
        if (isLost) {
            throw ModelException("the step before failed, and what the program keeps (${keeps.joinToString()}) is lost: reset")
        }
        val places = own.map { it.name }
        val before = fed
        val values = spec.inputs.map { before[it.name] ?: inputs[places.indexOf(it.name)] }
        val sizes = spec.inputs.map { one -> places.indexOf(one.name).let { if (it < 0) null else shapes?.get(it) } ?: one.shape }
        isLost = keeps.isNotEmpty()
        val outputs = run(values, sizes)
        if (outputs.size != spec.outputs.size) throw ModelException("the program gave ${outputs.size} outputs")
        fed = spec.feeds.associate { feed ->
            val given = outputs[spec.outputs.indexOfFirst { it.name == feed.output }]
            if (given.size != before.getValue(feed.input).size) throw ModelException("${feed.output} has ${given.size} values")
            feed.input to given.copyOf()
        }
        isLost = false
        return outputs
    }

    private fun begun(first: Map<String, FloatArray>): Map<String, FloatArray> {
        val names = spec.feeds.map { it.input }
        first.keys.firstOrNull { it !in names }?.let {
            throw ModelException("there is no fed input $it; there is ${names.joinToString().ifEmpty { "none" }}")
        }
        return spec.feeds.associate { feed ->
            val input = spec.inputs.first { it.name == feed.input }
            first[feed.input]?.let { input.check(it.size, input.shape) }
            feed.input to (first[feed.input]?.copyOf() ?: FloatArray(input.count) { feed.first })
        }
    }

    private fun <T> alone(call: () -> T): T {
        if (!busy.compareAndSet(false, true)) {
            throw ModelException("another thread is in a call of this session: make calls from one thread, or give each its own")
        }
        try {
            return call()
        } finally {
            busy.set(false)
        }
    }
}
