package org.lightningprune.digitpad

import android.Manifest
import android.os.Bundle
import android.widget.FrameLayout
import androidx.activity.result.contract.ActivityResultContracts
import androidx.camera.core.ImageProxy
import androidx.camera.view.CameraController
import androidx.camera.view.LifecycleCameraController
import androidx.camera.view.PreviewView
import java.util.concurrent.CancellationException
import java.util.concurrent.Executors
import kotlinx.coroutines.runBlocking
import org.lightningprune.logic.ModelException
import org.lightningprune.logic.Reading

/** What the camera sees: its class in a line of text, boxes and regions drawn over it. */
class CameraActivity : ModelActivity() {
    private val frames = Executors.newSingleThreadExecutor()
    private lateinit var controller: LifecycleCameraController
    private lateinit var overlay: ReadingView

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        controller = LifecycleCameraController(this)
        controller.setEnabledUseCases(CameraController.IMAGE_ANALYSIS)
        controller.setImageAnalysisAnalyzer(frames) { image -> image.use { look(it) } }
        val preview = PreviewView(this)
        preview.scaleType = PreviewView.ScaleType.FIT_CENTER // the whole picture, so that the overlay lies on it
        preview.controller = controller
        overlay = ReadingView(this)
        val frame = FrameLayout(this)
        frame.addView(preview)
        frame.addView(overlay)
        show(text, frame)
        registerForActivityResult(ActivityResultContracts.RequestPermission()) { isGranted ->
            if (isGranted) controller.bindToLifecycle(this) else text.text = "This screen needs the camera."
        }.launch(Manifest.permission.CAMERA)
    }

    /** On the thread of the frames, which waits here: frames that come meanwhile are left out. */
    private fun look(image: ImageProxy) {
        val rotation = image.imageInfo.rotationDegrees
        val isUpright = rotation % 180 == 0
        val said = try {
            val (reading, milliseconds) = runBlocking { runner.read(image.toBitmap(), rotation) }
            val (width, height) = if (isUpright) Pair(image.width, image.height) else Pair(image.height, image.width)
            overlay.post { overlay.show(reading, width, height) }
            "%s   %.2f ms".format(described(reading), milliseconds)
        } catch (error: ModelException) {
            error.message
        } catch (error: CancellationException) {
            return // the screen was left, and with it went the runner's thread
        }
        text.post { text.text = said }
    }

    private fun described(reading: Reading): String = when (reading) {
        is Reading.Classes -> "%s   %.1f %%".format(reading.answer.label, 100 * reading.answer.confidence)
        is Reading.Boxes -> "${reading.boxes.size} things"
        is Reading.Regions -> "${reading.classes.distinct().size} classes"
    }

    override fun onDestroy() {
        controller.unbind()
        frames.shutdown()
        super.onDestroy()
    }
}
