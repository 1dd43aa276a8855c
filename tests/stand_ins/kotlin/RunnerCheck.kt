import android.content.Context
import org.lightningprune.ProgramRunner
import org.lightningprune.logic.GrayImage
import org.lightningprune.logic.ModelException

/** Loads what lies in the assets and runs it; prints what an app would show. */
fun main() {
    try {
        ProgramRunner.load(Context()).use { runner ->
            val image = GrayImage(8, 8, FloatArray(64) { if (it == 1) 3f else 0f })
            println(runner.classify(image).answer)
            println("${runner.benchmark(3).runs} runs")
            runner.run(listOf(FloatArray(64)), listOf(listOf(2, 1, 8, 8)))
        }
    } catch (error: ModelException) {
        println("message: ${error.message}")
    }
}
