package org.lightningprune.logic

/** The class with the largest score, its name and its share of the softmax. */
data class Answer(val index: Int, val label: String, val confidence: Float)

/** From the scores that a program gives to a class. */
object Scores {
    /** exp(score - largest) / sum, computed in double precision. Throws [ModelException] where a score is no number. */
    fun softmax(scores: FloatArray): FloatArray {
        val largest = scores[argmax(scores)].toDouble()
        val shares = DoubleArray(scores.size) { Math.exp(scores[it] - largest) }
        val sum = shares.sum()
        return FloatArray(scores.size) { (shares[it] / sum).toFloat() }
    }

    /** The position of the largest score, the first one of equals. */
    fun argmax(scores: FloatArray): Int {
        if (scores.isEmpty()) throw ModelException("the program gave no scores")
        var best = 0
        for (i in scores.indices) {
            if (scores[i].isNaN() || scores[i].isInfinite()) throw ModelException("the program gave ${scores[i]} as a score")
            if (scores[i] > scores[best]) best = i
        }
        return best
    }

    /**
     * The answer for the first image of an output (images, classes).
     *
     * A class beyond the labels is called by its number.
     */
    fun answer(output: FloatArray, spec: TensorSpec, labels: List<String>): Answer {
        val classes = if (spec.shape.size == 2) spec.shape[1] else 0
        if (classes == 0 || spec.dtype != "float32") {
            throw ModelException("output $spec: this screen needs scores (images, classes) in float32")
        }
        if (output.size < classes) throw ModelException("the program gave ${output.size} scores, $classes expected")
        val scores = output.copyOf(classes)
        val best = argmax(scores)
        return Answer(best, if (best < labels.size) labels[best] else best.toString(), softmax(scores)[best])
    }
}
